"""Recipe text <-> plain data that remembers where each value was written.

The dialect is YAML 1.2's core: only `true` and `false` are booleans (`on` stays a word) and `1e-3` is a
number. Aliases and tags are refused: a recipe says what it means, and rows are the way to patch. So are values of more
than one line, with control characters, or nested deeper than any recipe is: what is read here is printed later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from switchkd_cli.errors import UNPRINTABLE, UserError

Step = str | int

LONGEST = 1 << 18  # characters of a recipe
DEEPEST = 30  # mappings and lists inside one another

_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        (
            r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        "-+.0123456789",
    ),
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, (pattern, starts) in _CORE.items():
        for start in starts:
            entry = (f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"))
            table.setdefault(start.replace("\0", ""), []).append(entry)
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem="aliases are not read: write the value out, or use rows",
                problem_mark=event.start_mark,
            )
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {DEEPEST} levels", problem_mark=self.peek_event().start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


class PlacedDict(dict):
    """A mapping that knows where it and each of its values were written (`file:line`, or `override`)."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.places: dict[str, str] = {}


class PlacedList(list):
    """A list that knows where it and each of its items were written."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.places: list[str] = []


def read(text: str, file: str) -> Any:
    """Parse a recipe. Raises UserError naming every duplicate key, tag, control character or syntax error it meets."""
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
    return _unplaced(read(text, "override"))


def write(data: Any) -> str:
    """The text that `read` turns back into `data`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def where(data: Any, path: Iterable[Step]) -> str:
    """Where the value at `path` was written, or its nearest ancestor that was."""
    place = getattr(data, "place", "")
    for step in path:
        try:
            place = data.places[step]
        except (AttributeError, KeyError, IndexError, TypeError):
            place = getattr(data, "place", place)
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            break
    return place


def _plain(node: yaml.Node, file: str, problems: list[str]) -> Any:
    place = f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        return _plain_mapping(node, place, file, problems)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items = PlacedList(place)
        for item in node.value:
            items.append(_plain(item, file, problems))
            items.places.append(f"{file}:{item.start_mark.line + 1}")
        return items
    if isinstance(node, yaml.ScalarNode) and _is_core(node):
        if UNPRINTABLE.search(node.value):
            problems.append(f"{place}: a value is one line without control characters, got {node.value!r}")
            return None
        try:
            return _Loader("").construct_object(node)
        except (ValueError, LookupError):  # too many digits; a tag that says !!bool of what is none
            problems.append(f"{place}: not a {node.tag.rpartition(':')[2]}, got {node.value!r}")
            return None
    problems.append(f"{place}: tags are not read, got {node.tag!r}")
    return None


def _plain_mapping(node: yaml.MappingNode, place: str, file: str, problems: list[str]) -> PlacedDict:
    mapping = PlacedDict(place)
    for key_node, value_node in node.value:
        key_place = f"{file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode) or not _is_core(key_node):
            problems.append(f"{key_place}: a key must be a word")
            continue
        key = key_node.value
        if UNPRINTABLE.search(key):
            problems.append(f"{key_place}: a key is one line without control characters, got {key!r}")
            continue
        if key in mapping:
            problems.append(f"{key_place}: {key}: written twice (first at {mapping.places[key]})")
            continue
        mapping[key] = _plain(value_node, file, problems)
        mapping.places[key] = key_place
    return mapping


def _is_core(node: yaml.Node) -> bool:
    """Whether the node's tag is one of the dialect's scalars."""
    return node.tag.removeprefix("tag:yaml.org,2002:") in {*_CORE, "str"}


def _unplaced(data: Any) -> Any:
    """The same data as plain mappings and lists."""
    if isinstance(data, dict):
        return {key: _unplaced(value) for key, value in data.items()}
    return [_unplaced(item) for item in data] if isinstance(data, list) else data
