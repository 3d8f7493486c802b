"""Read and write recipe text as plain data of which parts may be broken; every value remembers its file and line.

The dialect is the core of YAML 1.2: only `true` and `false` are booleans (`on` stays a word), and `1e-3` is a number.
Aliases and tags are refused: a recipe writes its values out, and rows are the way to change them. Also refused are values
of more than one line, control characters and very deep nesting, because what is read here is printed later.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import yaml

from switchkd_cli.errors import UNPRINTABLE, UserError

Step = str | int

LONGEST = 1 << 18  # characters of a recipe
DEEPEST = 30  # mappings and lists inside one another

_EXPONENT = "[eE][-+]?[0-9]+"
_FLOAT = rf"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:{_EXPONENT})?|[-+]?[0-9]+{_EXPONENT}"
# Of each scalar type of the dialect: its pattern, and the characters that it may start with ("" for an empty value).
_CORE: dict[str, tuple[str, list[str]]] = {
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", [*"-+0123456789"]),
    "float": (_FLOAT + r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", [*"-+.0123456789"]),
}
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        problem = f"nested deeper than {DEEPEST} levels" if self.depth > DEEPEST else ""
        if self.check_event(yaml.AliasEvent):
            problem = "aliases are not read: write the value out, or use rows"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _starts) in _CORE.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _starts)


class _Placed:
    """Knows where it and each of its values were written (`file:line`, or `override`)."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.places: dict[Step, str] = {}  # by key or index


class PlacedDict(_Placed, dict):
    """A mapping with places."""


class PlacedList(_Placed, list):
    """A list with places."""


def read(text: str, file: str) -> Any:
    """Parse a recipe's text. Raises UserError with every duplicate key, tag, control character or syntax error."""
    if len(text) > LONGEST:
        raise UserError(f"{file}: not a recipe: {len(text):,} characters, {LONGEST:,} are the most")
    try:
        node = yaml.compose(text, Loader=_Loader)
        problems: list[str] = []
        data = _plain(node, file, problems) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        raise UserError(f"{place}: not readable as YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two for "\\Uffffffff"
        raise UserError(f"{file}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if problems:
        raise UserError(problems)
    return data


def value(text: str) -> Any:
    """Parse the right-hand side of a `key=value` override, by the same rules. Raises UserError."""
    return json.loads(json.dumps(read(text, "override")))  # without places


def write(data: Any) -> str:
    """Return the text that `read` turns back into `data`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def where(data: Any, path: Iterable[Step]) -> str:
    """Return where the value at `path` was written; for a missing value, where its nearest ancestor was."""
    place = getattr(data, "place", "")
    for step in path:
        place = getattr(data, "places", {}).get(step) or getattr(data, "place", place)
        data = at(data, step)
    return place


def at(data: Any, *path: Any) -> Any:
    """Return the value at a path; None where there is none."""
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def line(data: Any, path: Sequence[Step], message: str, file: str = "") -> str:
    """Return `FILE:LINE: dotted.path: message`; `file` is named where the value's line is unknown."""
    words = [str(step) for step in path]
    for i, step in enumerate(path):
        if isinstance(step, int):
            words[i] = item_name(at(data, *path[: i + 1])) or words[i]
    return f"{where(data, path) or file}: {'.'.join(words) or 'recipe'}: {message}"


def item_name(item: Any) -> str | None:
    """Return the name of a list item: its `name`, or else its `loss`."""
    name = item.get("name", item.get("loss")) if isinstance(item, Mapping) else None
    return name if isinstance(name, str) else None


def fields_of(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each field of plain data with its dotted path, such as `stages.distill.lr`."""
    if not isinstance(value, dict | list):
        yield path, value
        return
    pairs = value.items() if isinstance(value, dict) else ((item_name(item) or i, item) for i, item in enumerate(value))
    for key, item in pairs:
        yield from fields_of(item, f"{path}.{key}" if path else str(key))


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def _plain(node: yaml.Node, file: str, problems: list[str]) -> Any:
    """Return the value of a node; what can't be read is left out, or None, and told in `problems`."""
    place = _place(node, file)
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        mapping = PlacedDict(place)
        for key_node, value_node in node.value:
            at_key, key = _place(key_node, file), key_node.value
            if not _is_core_scalar(key_node):
                problems.append(f"{at_key}: a key must be a word")
            elif UNPRINTABLE.search(key):
                problems.append(f"{at_key}: a key is one line without control characters, got {key!r}")
            elif key in mapping:
                problems.append(f"{at_key}: {key}: written twice (first at {mapping.places[key]})")
            else:
                mapping[key] = _plain(value_node, file, problems)
                mapping.places[key] = at_key
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        items = PlacedList(place)
        items.extend(_plain(item, file, problems) for item in node.value)
        items.places |= {i: _place(item, file) for i, item in enumerate(node.value)}
        return items
    if not _is_core_scalar(node):
        problems.append(f"{place}: tags are not read, got {node.tag!r}")
    elif UNPRINTABLE.search(node.value):
        problems.append(f"{place}: a value is one line without control characters, got {node.value!r}")
    else:
        try:
            return _Loader("").construct_object(node)
        except (ValueError, LookupError):  # too many digits; `!!bool` before something else
            problems.append(f"{place}: not a {node.tag.removeprefix(_TAG)}, got {node.value!r}")
    return None


def _place(node: yaml.Node, file: str) -> str:
    return f"{file}:{node.start_mark.line + 1}"


def _is_core_scalar(node: yaml.Node) -> bool:
    """Return whether a node is a scalar of one of the dialect's types."""
    return isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_TAG) in {*_CORE, "str"}
