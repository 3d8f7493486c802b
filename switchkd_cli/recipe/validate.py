"""Check what a recipe's schema can't see: names that must exist elsewhere, and values that must fit one another.

Every check reads plain data of which other parts may be broken, so that all problems come out in one pass.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import isdir
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from switchkd_cli import registry
from switchkd_cli.benchmarks import BENCHMARKS, ROW_METRICS, refusal
from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe.problems import fitted, misfit
from switchkd_cli.recipe.schema import HIGHER, LOWER, VALIDATION, RowFormat
from switchkd_cli.recipe.yaml_positions import Step, at, item_name, listed, mapping, mappings, trained_on

Location = tuple[Step, ...]
Problem = tuple[Location, str]

NO_INFINITY = ConfigDict(allow_inf_nan=False)
AVERAGE = "average"  # allowed next to the benchmarks' names in a row's printed numbers

# The parts that a term's gradient reaches: by the path that it is a term of (the teacher is frozen), and by what its loss
# reads of that path (parts that come later have no influence on it).
OF_STUDENT, OF_SWITCH = {"vision", "projector", "language"}, {"vision", "adapter"}
REACH: dict[str, set[str]] = {"student": OF_STUDENT, "switch": OF_SWITCH, "teacher": set()}
REACH_OF_KIND: dict[str, set[str]] = {"features": OF_SWITCH, "tokens": {*OF_SWITCH, "projector"}}
ACROSS = ({"student", "teacher"}, {"student", "switch"})


def check(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem of a recipe's plain data that needs more than one field to be seen."""
    for checks in (_models, _data_sets, _stages, _switch, _deepspeed, _checkpoints, _trackers, check_evaluation, _rows):
        yield from checks(data)


def _models(data: Mapping[str, Any]) -> Iterator[Problem]:
    for model in ("student", "teacher"):
        spec = mapping(data.get(model))
        yield from _unknown((model, "family"), "family", spec.get("family"), registry.FAMILIES)
        if isinstance(spec.get("language"), Mapping) and spec.get("tokenizer") is None:
            yield (model, "tokenizer"), "missing: a fresh language model needs a tokenizer"
    teacher, weights = mapping(data.get("teacher")), at(data, "teacher", "weights")
    if teacher.get("bits") is not None and weights in ("offloaded", "sharded"):
        yield ("teacher", "weights"), f"a teacher of {teacher['bits']} bits stays whole, got {weights!r}"
    for i, stage in mappings(data.get("stages")) if weights == "sharded" else ():
        if (states := stage.get("teacher_states", "batched")) != "batched":
            told = f"a sharded teacher computes the batches of all processes together, got {states!r}"
            yield ("stages", i, "teacher_states"), told


def _data_sets(data: Mapping[str, Any]) -> Iterator[Problem]:
    for name, spec in mapping(data.get("data")).items():
        yield from _data_set(mapping(spec), ("data", name))


def _data_set(spec: Mapping[str, Any], path: Location) -> Iterator[Problem]:
    """Yield an unknown template, and what is wrong with the source, its parameters, and a format of the recipe's own."""
    yield from _unknown((*path, "template"), "template", spec.get("template"), registry.TEMPLATES)
    yield from _registered("source", spec, path)
    value, path = at(spec, "parameters", "format"), (*path, "parameters", "format")
    yield from _unknown(path, "format", value, registry.FORMATS)
    if isinstance(value, Mapping):
        yield from (((*path, *inside), problem) for inside, problem in fitted(RowFormat, value)[1])


def _stages(data: Mapping[str, Any]) -> Iterator[Problem]:
    stages = mappings(data.get("stages"))
    yield from _repeated("stages", [(("stages", i, "name"), s.get("name")) for i, s in stages])
    for i, stage in stages:
        path: Location = ("stages", i)
        yield from _mixture(stage, path, mapping(data.get("data")))
        steps, epochs = stage.get("steps"), stage.get("epochs")
        if (steps is None) == (epochs is None):
            got = "neither" if steps is None else "both"
            yield (*path, "steps"), f"a stage takes either steps or epochs, got {got}"
        batch, micro = stage.get("batch"), stage.get("micro_batch")
        if type(batch) is int and type(micro) is int and micro > 0 and batch > 0 and batch % micro:
            yield (*path, "micro_batch"), f"must divide batch ({batch}), got {micro}"
        before = [earlier for number, earlier in stages if number < i]
        yield from _validation(stage, path, before, mapping(data.get("data")))
        lora, trained = stage.get("lora"), listed(stage.get("train"))
        if lora is not None and "language" not in trained:
            yield (*path, "lora"), f"trains adapters of the language model: add language to train, got {trained}"
        if lora is not None and stage.get("bits") is not None:
            yield (*path, "bits"), f"rounds weights that learn, with lora none of them do: got {stage['bits']}"
        if isinstance(stage.get("schedule", "cosine"), str):
            yield from _registered("schedule", {"schedule": "cosine", **stage}, path, "schedule_parameters")
        yield from _objective(stage, path, has_teacher=data.get("teacher") is not None)


def _mixture(stage: Mapping[str, Any], path: Location, data_sets: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the data sets that a stage trains on."""
    used = [((*path, *place), name) for place, name in trained_on(stage)]
    for place, name in used:
        yield from _unknown(place, "data set", name, data_sets)
    yield from _repeated("data sets of a mixture", used)
    templates = {at(data_sets, name, "template") for _, name in used if isinstance(name, str) and name in data_sets}
    if len(templates) > 1:  # the student is saved with one
        names = ", ".join(sorted(str(template or "the model's own") for template in templates))
        yield (*path, "data"), f"the data sets of a mixture have one template, got {names}"


def _validation(
    stage: Mapping[str, Any], path: Location, before: Sequence[Mapping[str, Any]], data_sets: Iterable[str]
) -> Iterator[Problem]:
    """Yield what is wrong with a stage's validation. The stages `before` must not train on its examples either."""
    spec, path = mapping(stage.get("validation")), (*path, "validation")
    if not spec:
        return
    name, share = spec.get("data"), spec.get("share")
    yield from _unknown((*path, "data"), "data set", name, data_sets)
    if (name is None) == (share is None):
        got = "neither" if name is None else "both"
        yield (*path, "data"), f"a validation takes either data or share, got {got}"
    if share is not None and isinstance(stage.get("data"), list):
        yield (*path, "share"), f"a mixture has none: name a data set, validation.data, got {share!r}"
    for other in (*before, stage):
        used = [data_set for _, data_set in trained_on(other)]
        if name is not None and name in used:
            yield (*path, "data"), f"stage {other.get('name')} trains on it, name another or a share, got {name!r}"
        theirs = mapping(other.get("validation")).get("share")
        if share is not None and stage.get("data") in used and theirs != share:
            problem = f"stage {other.get('name')} trains on these examples: it needs this share, got {share!r}"
            yield (*path, "share"), problem
    yield from _figure((*path, "monitor"), spec.get("monitor"), _validation_figures(stage))


def _validation_figures(stage: Mapping[str, Any]) -> list[str]:
    """Return the names of the figures of a stage's validation."""
    terms = [term for _, term in mappings(stage.get("objective"))]
    taught = any(term.get(side) in ("teacher", "switch") for term in terms for side in ("of", "to"))
    names = ["loss", "exact_match", *["agreement"] * taught, *(f"loss/{item_name(term)}" for term in terms)]
    return [VALIDATION + name for name in names]


def _figure(path: Location, name: Any, known: Sequence[str]) -> Iterator[Problem]:
    """Yield an unknown figure, or why the stage's validation has no agreement."""
    if name == f"{VALIDATION}agreement" and name not in known:
        yield path, f"no term of the stage reads the teacher, got {name!r}"
    else:
        yield from _unknown(path, "figure", name, known)


def _objective(stage: Mapping[str, Any], path: Location, *, has_teacher: bool) -> Iterator[Problem]:
    terms = [((*path, "objective", i), term) for i, term in mappings(stage.get("objective"))]
    yield from _repeated("terms", [((*place, "name"), item_name(term)) for place, term in terms])
    train = [part for part in listed(stage.get("train")) if isinstance(part, str)]
    yield from _repeated("trained parts", [((*path, "train"), part) for part in train])
    for part, scale in mapping(stage.get("lr_scale")).items():
        place = (*path, "lr_scale", part)
        if scale == 0 and part in train:
            yield place, f"trains nothing of it: take it out of train instead, got {scale}"
        if train and part in OF_STUDENT | OF_SWITCH and part not in train:
            yield place, f"the stage does not train it, got {part!r} (trained: {', '.join(train)})"
    reached: set[str] = set()
    for place, term in terms:
        yield from _loss(term, place)
        yield from _sides(term, place, train, has_teacher=has_teacher)
        yield from _focus(term, (*place, "focus"), has_teacher=has_teacher)
        reached |= _reach(term) if term.get("weight") != 0 else set()
    silent = " (terms of weight 0 aside)" * any(term.get("weight") == 0 for _, term in terms)
    for part in train:
        if terms and part in (OF_STUDENT | OF_SWITCH) - reached:
            yield (*path, "train"), f"no term of the objective trains it{silent}, got {part!r}"


def _reach(term: Mapping[str, Any]) -> set[str]:
    """Return the parts that a term's gradient reaches; all parts of its path where its loss is unknown."""
    reach = REACH.get(str(term.get("of", "student")), REACH["student"])
    if (signature := _signature("loss", term)) is None:
        return reach
    kinds = [kind for side, kind in signature.reads if side == "student"]
    return reach & set().union(*(REACH_OF_KIND.get(kind, reach) for kind in kinds))


def _loss(term: Mapping[str, Any], path: Location) -> Iterator[Problem]:
    """Yield what does not fit the loss of a term: its name, parameters, `to` and `on`."""
    yield from _registered("loss", term, path)
    if (signature := _signature("loss", term)) is None:
        return
    loss, to = term["loss"], term.get("to", "labels")
    needs_labels = not any(side == "teacher" for side, _ in signature.reads)
    if needs_labels and to != "labels":
        yield (*path, "to"), f"{loss} compares with the labels, got {to!r} (did you mean 'labels'?)"
    if not needs_labels and to == "labels":
        kinds = " and ".join(dict.fromkeys(kind for _, kind in signature.reads))
        yield (*path, "to"), f"{loss} compares two models' {kinds}, got 'labels' (did you mean 'teacher'?)"
    by_bytes = term.get("alignment", "positions") == "bytes"
    if signature.of_spans and not by_bytes:
        yield (*path, "alignment"), f"{loss} compares bytes, got 'positions' (did you mean 'bytes'?)"
    if by_bytes and (signature.of_images or {str(term.get("of", "student")), str(to)} not in ACROSS):
        yield (*path, "alignment"), "only what a student's and a teacher's tokens say is compared by bytes, got 'bytes'"
    if by_bytes and term.get("on", "answer") != "answer":
        yield (*path, "on"), f"bytes are compared in answers, got {term['on']!r} (did you mean 'answer'?)"
    if signature.of_images and term.get("on", "answer") != "answer":
        yield (*path, "on"), f"{loss} compares whole images, no positions: leave it out, got {term['on']!r}"


def _focus(term: Mapping[str, Any], path: Location, *, has_teacher: bool) -> Iterator[Problem]:
    """Yield what is wrong with the focus of a term: its score, and what its loss and its score read."""
    focus, loss = mapping(term.get("focus")), _signature("loss", term)
    score = {"focus": focus.get("by"), **focus}
    yield from _registered("focus", score, path, field="by")
    if loss is not None and focus:
        others = [kind for _, kind in loss.reads if kind != "logits"]
        if others or term.get("alignment") == "bytes":
            what = "bytes" if not others else " and ".join(dict.fromkeys(others))
            yield path, f"weights positions of logits, and {term['loss']} compares {what}, got {focus.get('by')!r}"
    signature = _signature("focus", score)
    if signature is not None and not has_teacher and set(signature.sides) - {"student"}:
        yield (*path, "by"), f"the recipe has no teacher, got {focus['by']!r}"
    mass, share = focus.get("mass", 0.5), focus.get("share")
    if isinstance(mass, float) and isinstance(share, float) and mass < share < 1:
        yield (*path, "mass"), f"these positions would get less than without a focus: {share} or more, got {mass}"


def _sides(term: Mapping[str, Any], path: Location, train: list[str], *, has_teacher: bool) -> Iterator[Problem]:
    """Yield what is wrong with a term's `of` and `to`, and with what it trains."""
    of, to, trained = term.get("of", "student"), term.get("to", "labels"), ", ".join(train)
    for key, side in (("of", of), ("to", to)):
        if side in ("teacher", "switch") and not has_teacher:
            yield (*path, key), f"the recipe has no teacher, got {side!r}"
    if of == to:
        yield (*path, "to"), f"a term compares two different things, got {to!r} twice"
    elif of == "teacher":
        yield (*path, "of"), "the teacher is frozen, so this term trains nothing, got 'teacher'"
    elif of == "switch" and train and not OF_SWITCH & set(train):
        yield (*path, "of"), f"the switch trains only vision, the stage only {trained}, got 'switch'"
    elif train and not (reach := _reach(term)) & set(train):
        parts = " and ".join(sorted(reach))
        yield (*path, "loss"), f"trains only {parts}, the stage only {trained}, got {term.get('loss')!r}"


def _switch(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each stage that trains an adapter where there is none, or uses one that no stage has trained by then."""
    adapter, trained = mapping(data.get("switch")).get("adapter"), False
    if adapter is not None and data.get("teacher") is None:
        yield ("switch", "adapter"), f"the recipe has no teacher, got {adapter!r}"
    for i, stage in mappings(data.get("stages")):
        train, path = listed(stage.get("train")), ("stages", i, "train")
        trained = trained or "adapter" in train
        if "adapter" in train and adapter is None:
            yield path, "the recipe has none (add `switch: {adapter: linear}`), got 'adapter'"
        terms = [term for _, term in mappings(stage.get("objective"))]
        if adapter is not None and not trained and any("switch" in (term.get("of"), term.get("to")) for term in terms):
            never = "the switch's adapter was never trained: add adapter here or before"
            yield path, f"{never}, got {', '.join(map(str, train))}"


def _deepspeed(data: Mapping[str, Any]) -> Iterator[Problem]:
    settings = mapping(data.get("deepspeed"))
    zero, offload = settings.get("zero", 0), settings.get("offload", "none")
    for what, needed in (("optimizer", 1), ("parameters", 3)):  # the first stage that shards it
        if offload == what and zero in range(needed):
            yield ("deepspeed", "offload"), f"needs zero: {needed} or more, got {what!r}"
    fsdp = data.get("launcher") == "fsdp"
    if fsdp and zero:
        yield ("deepspeed", "zero"), f"FSDP shards the training itself: leave it out, got {zero}"
    for i, stage in mappings(data.get("stages")) if zero or fsdp else ():
        if stage.get("optimizer") == "adamw_8bit":
            how = "launcher: fsdp" if fsdp else f"deepspeed.zero: {zero}"
            yield ("stages", i, "optimizer"), f"can't be sharded, got 'adamw_8bit' with {how}"
        if zero == 3 and mapping(stage.get("lora")).get("dora"):
            yield ("stages", i, "lora", "dora"), "reads whole weights: needs deepspeed.zero: 2 or less, got True and 3"


def _checkpoints(data: Mapping[str, Any]) -> Iterator[Problem]:
    stages = [stage for _, stage in mappings(data.get("stages"))]
    terms = [term for stage in stages for _, term in mappings(stage.get("objective"))]
    figures = [*LOWER, *HIGHER, *dict.fromkeys(f"loss/{item_name(term)}" for term in terms)]
    figures = [name for name in figures if not name.startswith(VALIDATION)]
    best, path = mapping(data.get("checkpoints")).get("best"), ("checkpoints", "best")
    if stages and stages[-1].get("validation") is not None:  # the last stage's best model is saved
        yield from _figure(path, best, figures + _validation_figures(stages[-1]))
    elif isinstance(best, str) and best.startswith(VALIDATION):
        yield path, f"the last stage has no `validation`, got {best!r}"
    else:
        yield from _unknown(path, "figure", best, figures)


def _trackers(data: Mapping[str, Any]) -> Iterator[Problem]:
    names = [(("trackers", i), name) for i, name in enumerate(listed(data.get("trackers")))]
    yield from _repeated("trackers", names)
    for path, name in names:
        yield from _unknown(path, "tracker", name, registry.TRACKERS)


def check_evaluation(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem of a recipe's `evaluation`."""
    evaluation = mapping(data.get("evaluation"))
    world = evaluation.get("world", "playground")
    in_playground = bool(evaluation) and world == "playground"
    items = evaluation.get("items")
    if in_playground and items is None:
        yield ("evaluation", "items"), "missing: the playground has no fixed number of questions"
    if in_playground and items == 1:
        yield ("evaluation", "items"), "the playground asks at least 2 questions (MME's come in pairs), got 1"
    asked = enumerate(listed(evaluation.get("benchmarks")))
    names = [(("evaluation", "benchmarks", i), name) for i, name in asked if isinstance(name, str)]
    yield from _repeated("benchmarks", names)
    folder = evaluation.get("tasks_path")
    if isinstance(folder, str) and not isdir(folder):
        yield ("evaluation", "tasks_path"), f"no such folder, got {folder!r}"
    own, rows = mapping(evaluation.get("data")), [name for _, name in names if name in ROW_METRICS]
    if own:
        yield from _data_set(own, ("evaluation", "data"))
    if own and not rows:
        yield ("evaluation", "data"), "no benchmark asks its rows: name rows.exact, rows.anls ..."
    if rows and not own:
        yield ("evaluation", "data"), f"missing: {rows[0]} asks its rows"
    for path, name in names:
        if problem := refusal(name, folder if isinstance(folder, str) else None):
            yield path, problem
        elif name in ROW_METRICS:
            continue
        elif world == "rows":
            yield path, f"is none of one's own rows, got {name!r} with world: rows"
        elif world == "hub" and not BENCHMARKS[name].published:
            yield path, f"exists only in the playground, got {name!r} with world: hub"
        elif in_playground and name not in BENCHMARKS:
            yield path, f"the playground has no questions for it, got {name!r} (with world: hub it can be asked)"
    # A model that is scored is asked questions in the template of its last stage.
    last = next((name for _, name in trained_on(mapping(at(data, "stages", -1)))), None)
    template = at(data, "data", last, "template")
    if data.get("evaluation") is not None and at(registry.TEMPLATES, template, "questions") is False:
        problem = "leaves questions out, and the last stage trains with it: the model could not be scored"
        yield ("data", str(last), "template"), f"{problem}, got {template!r}"


def _rows(data: Mapping[str, Any]) -> Iterator[Problem]:
    rows, controls = mapping(data.get("rows")), data.get("controls")
    for i, name in enumerate(listed(controls)):
        yield from _unknown(("controls", i), "row", name, rows)
    for row, spec in rows.items():
        for name in mapping(mapping(spec).get("paper")):
            yield from _unknown(("rows", row, "paper", name), "benchmark", name, [*BENCHMARKS, AVERAGE])


def _signature(kind: registry.Kind, spec: Mapping[str, Any]) -> registry.Signature | None:
    """Return the signature of the loss, source or schedule that `spec` names; None where it is unknown."""
    return registry.signature(kind, spec[kind]) if at(registry.REGISTRIES, kind, spec.get(kind)) else None


def _registered(
    kind: registry.Kind, spec: Mapping[str, Any], path: Location, parameters: str = "parameters", field: str = ""
) -> Iterator[Problem]:
    """Yield an unknown loss, source or schedule, or what is wrong with its `parameters`, by its signature's keywords."""
    name, values = spec.get(kind), mapping(spec.get(parameters))
    yield from _unknown((*path, field or kind), kind, name, registry.REGISTRIES[kind])
    signature = _signature(kind, spec)
    keywords = signature.keywords if signature else {}
    for key, value in values.items() if signature else ():
        if key not in keywords:
            problem = f"{name} takes no such parameter, got {key!r}{did_you_mean(key, keywords)}"
            yield (*path, parameters, key), problem
            continue
        strict = not isinstance(value, list | dict)  # `true` is no number
        try:
            TypeAdapter(keywords[key].annotation, config=NO_INFINITY).validate_python(value, strict=strict)
        except ValidationError as error:
            yield (*path, parameters, key), misfit(error.errors(include_url=False))
    for key, parameter in keywords.items():
        if parameter.default is parameter.empty and key not in values:
            yield (*path, parameters, key), f"missing: {name} needs it"


def _repeated(what: str, names: Sequence[tuple[Location, Any]]) -> Iterator[Problem]:
    for i, (path, name) in enumerate(names):
        if isinstance(name, str) and any(name == earlier for _, earlier in names[:i]):
            yield path, f"{what} need different names, got {name!r} twice"


def _unknown(path: Location, what: str, name: Any, known: Iterable[str]) -> Iterator[Problem]:
    if isinstance(name, str) and name not in known:
        yield path, f"unknown {what}, got {name!r}{did_you_mean(name, known)}"
