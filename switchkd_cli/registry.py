"""Names in recipes and options, and where their code is: losses, families, engines, data sources, formats, templates, trackers.

registry.yaml lists them. Nothing is imported before it is used; signatures are read from the source text.
"""

import ast
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.machinery import PathFinder
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal

from switchkd_cli import ranges
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.package_data import read_yaml

REGISTRIES: dict[str, dict[str, Any]] = read_yaml(__file__)
LOSSES: dict[str, str] = REGISTRIES["loss"]
FAMILIES: dict[str, str] = REGISTRIES["family"]
ENGINES: dict[str, str] = REGISTRIES["engine"]
RUNTIMES: dict[str, str] = REGISTRIES["export"]
FORMATS: dict[str, dict[str, Any]] = REGISTRIES["format"]
TEMPLATES: dict[str, dict[str, Any]] = REGISTRIES["template"]
TRACKERS: dict[str, dict[str, Any]] = REGISTRIES["tracker"]

# A loss declares what it reads by the names of its positional arguments: a side and a kind (`student_tokens` are read from
# the path that is its term's `of`, `teacher_tokens` from its `to`; any other side is the name of a path), or one of EXTRAS.
OF_POSITIONS = ("logits", "hidden", "mapped")
OF_IMAGES = ("features", "tokens", "attention", "focus", "attentions")
EXTRAS: tuple[str, ...] = ("targets", "rows", "progress", "state", "first_pieces", "student_spans", "student_image")
EXTRAS += ("teacher_targets", "teacher_rows", "teacher_spans", "teacher_image", "signs")
# A loss that compares the logits above a knee names the side of each knee in a decorator, and takes these parameters.
KNEES = "at_knees_of"
BOUNDS = ("window", "min_k", "max_k")

Kind = Literal["loss", "focus", "figure", "mixer", "family", "engine", "export", "source", "schedule"]
# What a schedule is given by the training; its other arguments are parameters in a recipe.
OF_TRAINING = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")

# The names that annotations of recipe parameters may use. A parameter with another annotation is not checked by type.
_ANNOTATIONS: dict[str, Any] = {"Any": Any, "Literal": Literal}
_ANNOTATIONS |= {of.__name__: of for of in (Mapping, Path, Sequence, bool, dict, float, int, list, str, tuple)}
_ANNOTATIONS |= {name: value for name, value in vars(ranges).items() if not name.startswith("_")}


@dataclass(frozen=True)
class Signature:
    """The arguments of a registered function: the keyword-only ones are parameters in a recipe (of a schedule all).

    The default of an argument is None where it is not a literal.
    """

    positional: Mapping[str, Parameter]
    keywords: Mapping[str, Parameter]
    knees: tuple[str, ...] = ()
    """The sides that lead a loss, at the knee of their sorted logits."""

    def leaders(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the sides of `knees` that lead with these parameters: one alone if `leaders` names it."""
        return tuple(side for side in self.knees if parameters.get("leaders", "both") in ("both", side))

    @property
    def reads(self) -> tuple[tuple[str, str], ...]:
        """(side, kind) of each positional argument that comes from a model, such as ("student", "logits")."""
        pairs = (name.rpartition("_") for name in self.positional if name not in EXTRAS)
        return tuple((side, kind) for side, _, kind in pairs)

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides of `reads`; of a score they are names of paths."""
        return tuple(dict.fromkeys(side for side, _ in self.reads))

    @property
    def of_images(self) -> bool:
        """Whether the loss gives one value per image; else it gives one per position that its term chooses, or per span."""
        return any(kind in OF_IMAGES for _, kind in self.reads)

    @property
    def of_sets(self) -> bool:
        """Whether a mixer's rule gives the weights of data sets; else it gives scores of rows."""
        return "weights" in self.positional

    @property
    def of_preferences(self) -> bool:
        """Whether the loss gives one value per pair of a preferred and a rejected answer."""
        return "signs" in self.positional

    @property
    def of_spans(self) -> bool:
        """Whether the loss gives one value per span of bytes that both models' tokens end together."""
        return "student_spans" in self.positional


def resolve(kind: Kind, name: str) -> Any:
    """Import and return the registered function or class. Raises UserError for an unknown name."""
    module, attribute = _target(kind, name)
    return getattr(importlib.import_module(module), attribute)


def signature(kind: Kind, name: str) -> Signature:
    """Return the signature of a registered function, read from its source file without importing it.

    Raises UserError for an unknown name, and LookupError where the registered file or function is missing.
    """
    found = _signature(*_target(kind, name))
    if kind != "schedule":
        return found
    free = {name: parameter for name, parameter in found.positional.items() if name not in OF_TRAINING}
    return replace(found, keywords={**found.keywords, **free})


def read_signature(kind: Kind, name: str) -> Signature:
    """Return the same as `signature`, but one without arguments for an unknown name."""
    return signature(kind, name) if name in REGISTRIES[kind] else Signature({}, {})


def template(name: str) -> str:
    """Return the Jinja text of a registered conversation template."""
    entry = TEMPLATES[name]
    prefix = f"{{%- set eos_token = '{entry['end']}' -%}}\n" if "end" in entry else ""
    file = Path(__file__).parent / "engine" / "data" / "templates" / f"{entry['file']}.jinja"
    return prefix + file.read_text(encoding="utf-8")


def _target(kind: Kind, name: str) -> tuple[str, str]:
    registry = REGISTRIES[kind]
    if name not in registry:
        raise UserError(f"{kind}: unknown {kind}, got {name!r}{did_you_mean(name, registry)}")
    module, _, attribute = registry[name].partition(":")
    return module, attribute


@cache
def _signature(module: str, attribute: str) -> Signature:
    path = _source_file(module)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name, args=given) if name == attribute:
                positional = _parameters([*given.posonlyargs, *given.args], given.defaults)
                return Signature(positional, _parameters(given.kwonlyargs, given.kw_defaults), _knees(node))
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Name(id="partial"), args=[ast.Name(id=function)], keywords=fixed),
            ) if name == attribute:
                whole, values = _signature(module, function), {str(k.arg): ast.literal_eval(k.value) for k in fixed}
                free = {name: of for name, of in whole.keywords.items() if name not in values}  # the rest can't be set
                return replace(whole, keywords=free, knees=whole.leaders(values))
    raise LookupError(f"{path} defines no function {attribute!r}")


def _parameters(arguments: Sequence[ast.arg], defaults: Sequence[ast.expr | None]) -> dict[str, Parameter]:
    """Return arguments by name; the `defaults` are those of the last ones."""
    given = [*[None] * (len(arguments) - len(defaults)), *defaults]
    return {argument.arg: _parameter(argument, value) for argument, value in zip(arguments, given, strict=True)}


def _parameter(argument: ast.arg, value: ast.expr | None) -> Parameter:
    default = Parameter.empty if value is None else None
    if value is not None:
        with suppress(ValueError):
            default = ast.literal_eval(value)
    return Parameter(argument.arg, Parameter.KEYWORD_ONLY, default=default, annotation=_annotation(argument.annotation))


def _source_file(module: str) -> Path:
    """Return the file of a module without importing its packages, as find_spec on a submodule would."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for part in rest:
        folders = [str(folder) for folder in spec.submodule_search_locations or ()] if spec else []
        spec = PathFinder.find_spec(part, folders)  # transformers' folder is a Path, which it doesn't take
    if spec is None or spec.origin is None:
        raise LookupError(f"no module {module!r}")
    return Path(spec.origin)


def _knees(function: ast.FunctionDef) -> tuple[str, ...]:
    """Return the sides that a decorator `at_knees_of("teacher", ...)` names."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == KNEES:
            return tuple(ast.literal_eval(side) for side in decorator.args)
    return ()


def _annotation(node: ast.expr | None) -> Any:
    if node is None:
        return Any
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _annotation(ast.parse(node.value, mode="eval").body)
    # The text is the package's own or a plugin's that is imported a moment later anyway; builtins are left out.
    try:
        return eval(ast.unparse(node), {"__builtins__": {}}, dict(_ANNOTATIONS))
    except (NameError, AttributeError, TypeError):
        return Any
