"""What the schema cannot see: names that must exist elsewhere, and values that must fit one another.

Every check reads plain data that may be broken elsewhere, so that all problems come out in one pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from switchkd_cli import registry
from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe.overrides import item_name
from switchkd_cli.recipe.schema import HIGHER, LOWER
from switchkd_cli.recipe.yaml_positions import Step

Path = tuple[Step, ...]
Problem = tuple[Path, str]

AVERAGE = "average"  # beside the benchmarks' names in a row's printed numbers

# Which parts the gradient of a term reaches, by the path it is a term of (the teacher is frozen), and by what its loss
# reads of that path: what lies behind has no part in it.
REACH: dict[str, frozenset[str]] = {
    "student": frozenset({"vision", "projector", "language"}),
    "switch": frozenset({"vision"}),
    "teacher": frozenset(),
}
IN_FRONT_OF: dict[str, frozenset[str]] = {
    "features": frozenset({"vision"}),
    "tokens": frozenset({"vision", "projector"}),
}


def check(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Every problem of a recipe's plain data that needs more than one field to be seen."""
    yield from _models(data)
    yield from _data_sets(data)
    yield from _stages(data)
    yield from _deepspeed(data)
    yield from _checkpoints(data)
    yield from _evaluation(data)
    yield from _taught_last(data)
    yield from _rows(data)


def _models(data: Mapping[str, Any]) -> Iterator[Problem]:
    for model in ("student", "teacher"):
        spec = _mapping(data.get(model))
        family = spec.get("family")
        if isinstance(family, str) and family not in registry.FAMILIES:
            yield (model, "family"), _unknown("family", family, registry.FAMILIES)
        if isinstance(spec.get("language"), Mapping) and spec.get("tokenizer") is None:
            yield (model, "tokenizer"), "missing: a fresh language model needs a tokenizer"


def _data_sets(data: Mapping[str, Any]) -> Iterator[Problem]:
    for name, spec in _mapping(data.get("data")).items():
        source, template = _mapping(spec).get("source"), _mapping(spec).get("template")
        if isinstance(template, str) and template not in registry.TEMPLATES:
            yield ("data", name, "template"), _unknown("template", template, registry.TEMPLATES)
        if not isinstance(source, str):
            continue
        if source not in registry.SOURCES:
            yield ("data", name, "source"), _unknown("source", source, registry.SOURCES)
        else:
            given = _mapping(spec.get("parameters"))
            yield from _parameters("source", source, given, ("data", name, "parameters"))


def _stages(data: Mapping[str, Any]) -> Iterator[Problem]:
    stages = _items(data.get("stages"))
    yield from _repeated("stages", [(("stages", i, "name"), s.get("name")) for i, s in stages])
    known_data = _mapping(data.get("data"))
    for i, stage in stages:
        path: Path = ("stages", i)
        name = stage.get("data")
        if isinstance(name, str) and name not in known_data:
            yield (*path, "data"), _unknown("data set", name, known_data)
        yield from _budget(stage, path)
        yield from _objective(stage, path, has_teacher=data.get("teacher") is not None)


def _deepspeed(data: Mapping[str, Any]) -> Iterator[Problem]:
    asked = _mapping(data.get("deepspeed"))
    zero, offload = asked.get("zero", 0), asked.get("offload", "none")
    if offload == "optimizer" and zero == 0:
        yield ("deepspeed", "offload"), "needs zero: 1 or more, got 'optimizer'"
    if offload == "parameters" and zero != 3:
        yield ("deepspeed", "offload"), "needs zero: 3, which shares parameters out, got 'parameters'"


def _checkpoints(data: Mapping[str, Any]) -> Iterator[Problem]:
    best = _mapping(data.get("checkpoints")).get("best")
    terms = [term for _, stage in _items(data.get("stages")) for _, term in _items(stage.get("objective"))]
    known = [*LOWER, *HIGHER, *dict.fromkeys(f"loss/{item_name(term)}" for term in terms)]
    if isinstance(best, str) and best not in known:
        yield ("checkpoints", "best"), _unknown("figure", best, known)


def _budget(stage: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    steps, epochs = stage.get("steps"), stage.get("epochs")
    if (steps is None) == (epochs is None):
        got = "neither" if steps is None else "both"
        yield (*path, "steps"), f"a stage takes either steps or epochs, got {got}"
    batch, micro = stage.get("batch"), stage.get("micro_batch")
    if _is_count(batch) and _is_count(micro) and batch % micro:
        yield (*path, "micro_batch"), f"must divide batch ({batch}), got {micro}"


def _objective(stage: Mapping[str, Any], path: Path, *, has_teacher: bool) -> Iterator[Problem]:
    terms = [((*path, "objective", i), term) for i, term in _items(stage.get("objective"))]
    yield from _repeated("terms", [((*at, "name"), item_name(term)) for at, term in terms])
    train = stage.get("train")
    train = [part for part in train if isinstance(part, str)] if isinstance(train, list) else []
    yield from _repeated("trained parts", [((*path, "train"), part) for part in train])
    for part, scale in _mapping(stage.get("lr_scale")).items():
        if scale == 0 and part in train:
            yield (
                (*path, "lr_scale", part),
                f"trains nothing of it: take it out of train instead, got {scale}",
            )
        if train and part in REACH["student"] and part not in train:
            yield (
                (*path, "lr_scale", part),
                f"the stage does not train it, got {part!r} (trained: {', '.join(train)})",
            )
    reached: set[str] = set()
    for at, term in terms:
        yield from _loss(term, at)
        yield from _routes(term, at, train, has_teacher=has_teacher)
        reached |= _reach(term) if term.get("weight") != 0 else set()
    for part in train:
        if terms and part in REACH["student"] - reached:
            aside = " (terms of weight 0 aside)" * any(term.get("weight") == 0 for _, term in terms)
            yield (*path, "train"), f"no term of the objective trains it{aside}, got {part!r}"


def _reach(term: Mapping[str, Any]) -> frozenset[str]:
    """The parts that the term's gradient reaches; all that its path has where its loss is not known."""
    reach = REACH.get(str(term.get("of", "student")), REACH["student"])
    if not isinstance(term.get("loss"), str) or term["loss"] not in registry.LOSSES:
        return reach
    kinds = [kind for side, kind in registry.signature("loss", term["loss"]).reads if side == "student"]
    return reach & frozenset().union(*(IN_FRONT_OF.get(kind, reach) for kind in kinds))


def _loss(term: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    loss = term.get("loss")
    if not isinstance(loss, str):
        return
    if loss not in registry.LOSSES:
        yield (*path, "loss"), _unknown("loss", loss, registry.LOSSES)
        return
    yield from _parameters("loss", loss, _mapping(term.get("parameters")), (*path, "parameters"))
    reads = registry.signature("loss", loss)
    wants_labels = not any(side == "teacher" for side, _ in reads.reads)
    to = term.get("to", "labels")
    if wants_labels and to != "labels":
        yield (*path, "to"), f"{loss} compares with the labels, got {to!r} (did you mean 'labels'?)"
    if not wants_labels and to == "labels":
        what = " and ".join(dict.fromkeys(kind for _, kind in reads.reads))
        yield (*path, "to"), f"{loss} compares two models' {what}, got 'labels' (did you mean 'teacher'?)"
    if reads.of_pictures and term.get("on", "answer") != "answer":
        yield (*path, "on"), f"{loss} compares whole pictures, no positions: leave it out, got {term['on']!r}"


def _routes(term: Mapping[str, Any], path: Path, train: list[str], *, has_teacher: bool) -> Iterator[Problem]:
    of, to = term.get("of", "student"), term.get("to", "labels")
    for key, route in (("of", of), ("to", to)):
        if route in ("teacher", "switch") and not has_teacher:
            yield (*path, key), f"the recipe has no teacher, got {route!r}"
    if of == to:
        yield (*path, "to"), f"a term compares two different things, got {to!r} twice"
    elif of == "teacher":
        yield (*path, "of"), "the teacher is frozen, so this term trains nothing, got 'teacher'"
    elif of == "switch" and train and "vision" not in train:
        yield (
            (*path, "of"),
            f"the switch trains only vision, the stage only {', '.join(train)}, got 'switch'",
        )
    elif train and not _reach(term) & set(train):
        reach = " and ".join(sorted(_reach(term)))
        yield (*path, "loss"), f"trains only {reach}, the stage only {', '.join(train)}, got {term['loss']!r}"


def _evaluation(data: Mapping[str, Any]) -> Iterator[Problem]:
    evaluation = _mapping(data.get("evaluation"))
    if (
        evaluation.get("world", "playground") == "playground"
        and evaluation
        and evaluation.get("items") is None
    ):
        yield ("evaluation", "items"), "missing: the playground has no fixed number of questions"
    names = evaluation.get("benchmarks")
    listed = (
        [(("evaluation", "benchmarks", i), n) for i, n in enumerate(names)] if isinstance(names, list) else []
    )
    yield from _repeated("benchmarks", listed)
    for path, name in listed:
        if isinstance(name, str) and name not in BENCHMARKS:
            yield path, _unknown("benchmark", name, BENCHMARKS)


def _taught_last(data: Mapping[str, Any]) -> Iterator[Problem]:
    """A model that is to be scored is asked as its last stage taught it."""
    stages = _items(data.get("stages"))
    name = stages[-1][1].get("data") if stages else None
    spec = _mapping(_mapping(data.get("data")).get(name)) if isinstance(name, str) else {}
    if data.get("evaluation") is not None and spec.get("template") in registry.QUESTIONLESS:
        yield (
            ("data", name, "template"),
            f"leaves questions out, and the last stage teaches with it: the model could not be scored, got {spec['template']!r}",
        )


def _rows(data: Mapping[str, Any]) -> Iterator[Problem]:
    rows = _mapping(data.get("rows"))
    controls = data.get("controls")
    for i, name in enumerate(controls if isinstance(controls, list) else ()):
        if isinstance(name, str) and name not in rows:
            yield ("controls", i), _unknown("row", name, rows)
    for row, spec in rows.items():
        for name in _mapping(_mapping(spec).get("paper")):
            if name not in BENCHMARKS and name != AVERAGE:
                yield ("rows", row, "paper", name), _unknown("benchmark", name, [*BENCHMARKS, AVERAGE])


def _parameters(kind: registry.Kind, name: str, given: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """Compare what a recipe gives with the function's own keyword-only arguments."""
    keywords = registry.signature(kind, name).keywords
    for key, value in given.items():
        if key not in keywords:
            yield (*path, key), f"{name} takes no such parameter, got {key!r}{did_you_mean(key, keywords)}"
        elif (wrong := _misfit(keywords[key].annotation, value)) is not None:
            yield (*path, key), f"{wrong}, got {value!r}"
    for key, parameter in keywords.items():
        if parameter.required and key not in given:
            yield (*path, key), f"missing: {name} needs it"


def _misfit(annotation: Any, value: Any) -> str | None:
    """Why `value` does not fit `annotation`, or None. Scalars are compared strictly: `true` is no number."""
    strict = not isinstance(value, list | dict)
    try:
        TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=strict)
    except PydanticUserError:  # an annotation that takes no configuration of ours
        return None
    except ValidationError as error:
        return " or ".join(dict.fromkeys(e["msg"].removeprefix("Input ") for e in error.errors()))
    return None


def _repeated(what: str, named: Iterable[tuple[Path, Any]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for path, name in named:
        if isinstance(name, str) and name in seen:
            yield path, f"{what} need different names, got {name!r} twice"
        elif isinstance(name, str):
            seen.add(name)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"unknown {what}, got {name!r}{did_you_mean(name, known)}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> list[tuple[int, Mapping[str, Any]]]:
    """The mappings of a list, with their indices."""
    return (
        [(i, item) for i, item in enumerate(value) if isinstance(item, Mapping)]
        if isinstance(value, list)
        else []
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
