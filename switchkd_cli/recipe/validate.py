"""Check what a recipe's schema can't see: names that must exist elsewhere, and values that must fit one another.

Every check reads plain data of which other parts may be broken, so that all problems come out in one pass.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import isdir
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from switchkd_cli import registry
from switchkd_cli.benchmarks import BENCHMARKS, ROW_METRICS, refusal
from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe.problems import fitted, misfit
from switchkd_cli.recipe.schema import BUILT_IN, FIGURES, LEARNING, MODULES, VALIDATION, PathSpec, RowFormat, through
from switchkd_cli.recipe.yaml_positions import Step, at, item_name, listed, mapping, mappings, trained_on

Location = tuple[Step, ...]
Problem = tuple[Location, str]

NO_INFINITY = ConfigDict(allow_inf_nan=False)
AVERAGE = "average"  # allowed next to the benchmarks' names in a row's printed numbers

PARTS = {*MODULES, "adapter"}
# The parts that a term's gradient may reach, by what its loss reads of a path: later ones have no influence on it.
REACH_OF_KIND = {"features": {"vision", "adapter"}, "tokens": {"vision", "adapter", "projector"}}

Paths = Mapping[str, PathSpec]
"""The paths that a recipe's terms may name."""


def check(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem of a recipe's plain data that needs more than one field to be seen."""
    for checks in (_models, _data_sets, _stages, _switch, _deepspeed, _checkpoints, _trackers, check_evaluation, _rows):
        yield from checks(data)


def _models(data: Mapping[str, Any]) -> Iterator[Problem]:
    teachers = mapping(data.get("teachers"))
    for model in (("student",), ("teacher",), *(("teachers", name) for name in teachers)):
        spec = mapping(at(data, *model))
        yield from _unknown((*model, "family"), "family", spec.get("family"), registry.FAMILIES)
        if isinstance(spec.get("language"), Mapping) and spec.get("tokenizer") is None:
            yield (*model, "tokenizer"), "missing: a fresh language model needs a tokenizer"
    first, weights = mapping(data.get("teacher")), at(data, "teacher", "weights")
    if first.get("bits") is not None and weights in ("offloaded", "sharded"):
        yield ("teacher", "weights"), f"a teacher of {first['bits']} bits stays whole, got {weights!r}"
    for i, stage in mappings(data.get("stages")) if weights == "sharded" else ():
        if (states := stage.get("teacher_states", "batched")) != "batched":
            told = f"a sharded teacher computes the batches of all processes together, got {states!r}"
            yield ("stages", i, "teacher_states"), told
    if teachers and data.get("teacher") is None:
        yield ("teachers",), "the recipe has no teacher: name the first one `teacher`"
    known, models = known_paths(data), [*LEARNING, "teacher", *teachers]
    through_models = [name for name, path in known.items() if not path.mean]
    names = [("teachers", name) for name in teachers] + [("paths", name) for name in mapping(data.get("paths"))]
    yield from _repeated("paths", [((), name) for name in (*BUILT_IN, "labels")] + [(at, at[1]) for at in names])
    for path in names:
        spec = mapping(at(data, *path))
        for key in ("model", *MODULES, "head"):
            yield from _unknown((*path, key), "model", spec.get(key) if path[0] == "paths" else None, models)
        for word in re.findall(r"\{(\w+)\}", str(spec.get("prompt"))):
            yield from _unknown((*path, "prompt"), "placeholder", word, ("question", "answer"))
        for i, name in enumerate(listed(spec.get("mean"))):
            yield from _unknown((*path, "mean", i), "path through models", name, through_models)


def known_paths(data: Mapping[str, Any]) -> Paths:
    """Return every path that a term may name; one that is broken stands for the student's."""
    alone = {name: {"model": name} for name in mapping(data.get("teachers"))}
    own = {name: fitted(PathSpec, spec)[0] for name, spec in {**alone, **mapping(data.get("paths"))}.items()}
    return {**{name: path or BUILT_IN["student"] for name, path in own.items()}, **BUILT_IN}


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
        yield from _mixer(stage, path, has_teacher=data.get("teacher") is not None)
        before = [earlier for number, earlier in stages if number < i]
        yield from _validation(stage, path, before, mapping(data.get("data")))
        figures = _validation_figures(stage, known_paths(data))
        yield from _figure((*path, "validation", "monitor"), at(stage, "validation", "monitor"), figures)
        lora, trained = stage.get("lora"), listed(stage.get("train"))
        if lora is not None and "language" not in trained:
            yield (*path, "lora"), f"trains adapters of the language model: add language to train, got {trained}"
        if lora is not None and stage.get("bits") is not None:
            yield (*path, "bits"), f"rounds weights that learn, with lora none of them do: got {stage['bits']}"
        if isinstance(stage.get("schedule", "cosine"), str):
            yield from _registered("schedule", {"schedule": "cosine", **stage}, path, "schedule_parameters")
        yield from _objective(stage, path, data)


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


def _mixer(stage: Mapping[str, Any], path: Location, *, has_teacher: bool) -> Iterator[Problem]:
    """Yield an unknown rule, and what of a stage's mixer doesn't fit it: weights are a mixture's, rows have candidates."""
    spec, path = mapping(stage.get("mixer")), (*path, "mixer")
    if not spec:
        return
    by = spec.get("by")
    yield from _registered("mixer", {"mixer": by, **spec}, path, field="by")
    if not has_teacher:
        yield (*path, "by"), f"the recipe has no teacher to compare the student with, got {by!r}"
    if (signature := _signature("mixer", {"mixer": by})) is None:
        return
    of_sets, of_rows = ("rows",), ("candidates", "variants", "again", "strength")
    what, unused = ("sets weights", of_rows) if signature.of_sets else ("chooses rows", of_sets)
    yield from (((*path, key), f"{by} {what}: leave it out, got {spec[key]}") for key in unused if key in spec)
    if signature.of_sets and not isinstance(stage.get("data"), list):
        yield (*path, "by"), f"{by} {what}: the stage needs a mixture, got data {stage.get('data')!r}"
    several = spec.get("variants", 1) != 1
    if not (signature.of_sets or several or spec.get("candidates", 1) != 1 or spec.get("again")):
        yield path, f"{by} has nothing to choose from: give it candidates, variants or again"
    if "strength" in spec and not signature.of_sets and not several:
        yield (*path, "strength"), f"is that of variants, which this mixer doesn't have, got {spec['strength']}"


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


def _validation_figures(stage: Mapping[str, Any], known: Paths) -> list[str]:
    """Return the names of the figures of a stage's validation."""
    terms = [term for _, term in mappings(stage.get("objective"))]
    taught = any(_needs_teacher(side, known) for term in terms for side in _compared(term))
    of_data = [term for term in terms if term.get("answers") != "own"]  # it asks for no own answers
    names = ["loss", "exact_match", *["agreement"] * taught, *(f"loss/{item_name(term)}" for term in of_data)]
    return [VALIDATION + name for name in names]


def _figure(path: Location, name: Any, known: Sequence[str]) -> Iterator[Problem]:
    """Yield an unknown figure, or why the stage's validation has no agreement."""
    if name == f"{VALIDATION}agreement" and name not in known:
        yield path, f"no term of the stage reads the teacher, got {name!r}"
    else:
        yield from _unknown(path, "figure", name, known)


def _compared(term: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a term compares: its `of` and `to`."""
    return str(term.get("of", "student")), str(term.get("to", "labels"))


def _readings(term: Mapping[str, Any], known: Paths) -> list[PathSpec]:
    """Return the paths through models that a term reads: those that it compares, and those that its loss or score names."""
    loss, score = _signature("loss", term), _score(term)
    own = {*loss.sides} - {"student", "teacher"} if loss else set()  # those are its `of` and `to`
    sides = {*_compared(term), *own, *(score.sides if score else ())}
    return [path for side in sorted(sides) for path in through(side, known).values()]


def _needs_teacher(side: str, known: Paths) -> bool:
    return any(not path.models.issubset(LEARNING) for path in through(side, known).values())


def _objective(stage: Mapping[str, Any], path: Location, data: Mapping[str, Any]) -> Iterator[Problem]:
    terms = [((*path, "objective", i), term) for i, term in mappings(stage.get("objective"))]
    yield from _repeated("terms", [((*place, "name"), item_name(term)) for place, term in terms])
    train = [part for part in listed(stage.get("train")) if isinstance(part, str)]
    yield from _repeated("trained parts", [((*path, "train"), part) for part in train])
    for part, scale in mapping(stage.get("lr_scale")).items():
        place = (*path, "lr_scale", part)
        if scale == 0 and part in train:
            yield place, f"trains nothing of it: take it out of train instead, got {scale}"
        if train and part in PARTS and part not in train:
            yield place, f"the stage does not train it, got {part!r} (trained: {', '.join(train)})"
    reached, known = set[str](), known_paths(data)
    yield from _answers(stage, path, terms, known)
    read = [of for _, term in terms for of in _readings(term, known)]
    size = stage.get("micro_batch") or stage.get("batch")
    if any(of.images == "mixed" for of in read) and isinstance(size, int) and size % 2:
        yield (*path, "micro_batch"), f"images are mixed by two examples of a micro-batch: an even number, got {size}"
    for place, term in terms:
        yield from _loss(term, place, known)
        yield from _sides(term, place, train, data)
        yield from _focus(term, (*place, "focus"), data)
        reached |= _reach(term, known) if term.get("weight") != 0 else set()
    silent = " (terms of weight 0 aside)" * any(term.get("weight") == 0 for _, term in terms)
    for part in train:
        if terms and part in PARTS - reached:
            yield (*path, "train"), f"no term of the objective trains it{silent}, got {part!r}"


def _answers(
    stage: Mapping[str, Any], path: Location, terms: Sequence[tuple[Location, Mapping[str, Any]]], known: Paths
) -> Iterator[Problem]:
    """Yield what doesn't fit a stage's own answers: other settings, and terms that have nothing to compare, or no right answer."""
    own = mapping(stage.get("answers")).get("own", 0)
    if own and stage.get("teacher_states") == "cached":
        yield (*path, "teacher_states"), "own answers are new in every step (did you mean 'by_row'?), got 'cached'"
    for place, term in terms:
        to_labels, answers = term.get("to", "labels") == "labels", term.get("answers")
        if answers in ("own", "both") and to_labels:
            yield (*place, "answers"), f"only given answers have labels, got {answers!r}"
        elif answers == "own" and not own:
            yield (*place, "answers"), "the stage gives no own answers (`answers: {own: 0.5}`), got 'own'"
        elif own == 1 and answers in ("given", None) and (to_labels or answers) and term.get("weight") != 0:
            yield (*path, "answers", "own"), f"leaves {item_name(term)} no given answer, got {own}"
        elif answers == "own" and term.get("on") in ("chosen", "rejected", "pair"):
            yield (*place, "answers"), f"no own answer is preferred: {term['on']} ones are given, got 'own'"
        elif own and answers is None and not to_labels and _reads_right_answers(term, known):
            told = "it reads which tokens are right, and those of own answers all are: `given`, `own` or `both`"
            yield (*place, "answers"), f"missing: {told}"
        if own and term.get("alignment") == "bytes":
            yield (*place, "alignment"), "own answers are compared at equal positions, got 'bytes'"


def _reads_right_answers(term: Mapping[str, Any], known: Paths) -> bool:
    """Whether a term that isn't to the labels reads them: in its loss, its score, or a mean by the loss on them."""
    read = [of for of in (_signature("loss", term), _score(term)) if of and not of.of_preferences]
    mean = known.get(_compared(term)[1])
    return any("targets" in of.positional for of in read) or (mean is not None and mean.by == "loss")


def _reach(term: Mapping[str, Any], known: Paths = BUILT_IN) -> set[str]:
    """Return the parts that a term's gradient reaches; all parts of its path where its loss is unknown."""
    reach = known.get(_compared(term)[0], BUILT_IN["student"]).trains
    if (signature := _signature("loss", term)) is None:
        return reach
    kinds = [kind for side, kind in signature.reads if side == "student"]
    return reach & set().union(*(REACH_OF_KIND.get(kind, reach) for kind in kinds))


def _loss(term: Mapping[str, Any], path: Location, known: Paths) -> Iterator[Problem]:
    """Yield what does not fit the loss of a term: its name, parameters, `to` and `on`."""
    yield from _registered("loss", term, path)
    if (signature := _signature("loss", term)) is None:
        return
    loss, (of, to) = term["loss"], _compared(term)
    needs_labels = not any(side == "teacher" for side, _ in signature.reads)
    if needs_labels and to != "labels":
        yield (*path, "to"), f"{loss} compares with the labels, got {to!r} (did you mean 'labels'?)"
    if not needs_labels and to == "labels":
        kinds = " and ".join(dict.fromkeys(kind for _, kind in signature.reads))
        yield (*path, "to"), f"{loss} compares two models' {kinds}, got 'labels' (did you mean 'teacher'?)"
    by_bytes = term.get("alignment", "positions") == "bytes"
    readers = {known[side].language for side in (of, to) if side in known and not known[side].mean}
    across = len(readers) == 2 and "teacher" in readers and not readers.isdisjoint(LEARNING)
    if signature.of_spans and not by_bytes:
        yield (*path, "alignment"), f"{loss} compares bytes, got 'positions' (did you mean 'bytes'?)"
    if by_bytes and (signature.of_images or not across):
        yield (*path, "alignment"), "only what a student's and a teacher's tokens say is compared by bytes, got 'bytes'"
    if signature.of_preferences and (on := term.get("on", "answer")) != "pair":
        yield (*path, "on"), f"{loss} compares a preferred answer with a rejected one: 'pair', got {on!r}"
    if "student_image" in signature.positional and term.get("on") != "all":
        yield (*path, "on"), f"{loss} compares visual tokens with text: 'all', got {term.get('on', 'answer')!r}"
    if by_bytes and term.get("on", "answer") != "answer":
        yield (*path, "on"), f"bytes are compared in answers, got {term['on']!r} (did you mean 'answer'?)"
    if signature.of_images and term.get("answers") is not None:
        yield (*path, "answers"), f"{loss} compares whole images: leave it out, got {term['answers']!r}"
    if signature.of_images and term.get("on", "answer") != "answer":
        yield (*path, "on"), f"{loss} compares whole images, no positions: leave it out, got {term['on']!r}"


def _score(term: Mapping[str, Any]) -> registry.Signature | None:
    """Return the signature of the score of a term's focus; None where there is none, or it is unknown."""
    return _signature("focus", {"focus": mapping(term.get("focus")).get("by")})


def _focus(term: Mapping[str, Any], path: Location, data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the focus of a term: its score, and what its loss and its score read."""
    focus, loss = mapping(term.get("focus")), _signature("loss", term)
    score = {"focus": focus.get("by"), **focus}
    yield from _registered("focus", score, path, field="by")
    if loss is not None and focus:
        others = [kind for _, kind in loss.reads if kind != "logits"]
        others = ["pairs"] if loss.of_preferences else ["matches"] if "teacher_rows" in loss.positional else others
        if others or term.get("alignment") == "bytes":
            what = "bytes" if not others else " and ".join(dict.fromkeys(others))
            yield path, f"weights positions of logits, and {term['loss']} compares {what}, got {focus.get('by')!r}"
    signature = _score(term)
    known, sides = known_paths(data), signature.sides if signature else ()
    for side in sides:
        yield from _unknown((*path, "by"), "path", side, known)
    if data.get("teacher") is None and any(_needs_teacher(side, known) for side in sides):
        yield (*path, "by"), f"the recipe has no teacher, got {focus['by']!r}"
    mass, share = focus.get("mass", 0.5), focus.get("share")
    if "mass" in focus and share is None:
        yield (*path, "mass"), f"is that of a `share` of the positions, which this focus doesn't have, got {mass}"
    if isinstance(mass, float) and isinstance(share, float) and mass < share < 1:
        yield (*path, "mass"), f"these positions would get less than without a focus: {share} or more, got {mass}"


def _sides(term: Mapping[str, Any], path: Location, train: list[str], data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the paths that a term names, and with what it trains."""
    (of, to), trained, known, signature = _compared(term), ", ".join(train), known_paths(data), _signature("loss", term)
    named = sorted({*signature.sides} - {"student", "teacher"}) if signature else []
    more = ", ".join(sorted({kind for _, kind in signature.reads} - {"logits"})) if signature else ""
    for key, side in (("of", of), ("to", to), *(("loss", name) for name in named)):
        what = f"path, which {term['loss']} reads" if key == "loss" else "path"
        yield from _unknown((*path, key), what, side, [*known, *["labels"] * (key == "to")])
        if _needs_teacher(side, known) and data.get("teacher") is None:
            yield (*path, key), f"the recipe has no teacher, got {side!r}"
        if more and key != "of" and side in known and known[side].mean:
            yield (*path, key), f"a mean of paths has logits alone, {term['loss']} reads {more}, got {side!r}"
        if side in known and known[side].by == "loss" and term.get("on") in ("image", "rejected"):
            yield (*path, "on"), f"{side} weighs paths by their loss on the answers, got {term['on']!r}"
    read = _readings(term, known)
    if len({made.prompt for made in read}) > 1 and term.get("on", "answer") != "answer":
        yield (*path, "on"), f"paths with other prompts are compared at the answers alone, got {term['on']!r}"
    if to == "labels" and any(made.images == "mixed" for made in read):
        yield (*path, "of"), f"mixed images have no right answers: compare it with a path, got {of!r} and 'labels'"
    if of not in known:
        return
    reach = known[of].trains
    if known[of] == known.get(to):
        yield (*path, "to"), f"a term compares two different things, got {to!r} twice"
    elif not reach:
        yield (*path, "of"), f"the {of} is frozen, so this term trains nothing, got {of!r}"
    elif of != "student" and train and not reach & set(train):
        parts = " and ".join(sorted(reach - {"adapter"}))
        yield (*path, "of"), f"the {of} trains only {parts}, the stage only {trained}, got {of!r}"
    elif train and not (reach := _reach(term, known)) & set(train):
        parts = " and ".join(sorted(reach))
        yield (*path, "loss"), f"trains only {parts}, the stage only {trained}, got {term.get('loss')!r}"


def _switch(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each stage that trains an adapter where there is none, or uses one that no stage has trained by then."""
    adapter, trained, known = mapping(data.get("switch")).get("adapter"), False, known_paths(data)
    if adapter is not None and data.get("teacher") is None:
        yield ("switch", "adapter"), f"the recipe has no teacher, got {adapter!r}"
    for i, stage in mappings(data.get("stages")):
        train, path = listed(stage.get("train")), ("stages", i, "train")
        trained = trained or "adapter" in train
        if "adapter" in train and adapter is None:
            yield path, "the recipe has none (add `switch: {adapter: linear}`), got 'adapter'"
        sides = [path for _, term in mappings(stage.get("objective")) for path in _readings(term, known)]
        if adapter is not None and not trained and any(path.is_switch for path in sides):
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
    figures = [*FIGURES, *dict.fromkeys(f"loss/{item_name(term)}" for term in terms)]
    figures = [name for name in figures if not name.startswith(VALIDATION)]
    best, path = mapping(data.get("checkpoints")).get("best"), ("checkpoints", "best")
    if stages and stages[-1].get("validation") is not None:  # the last stage's best model is saved
        yield from _figure(path, best, figures + _validation_figures(stages[-1], known_paths(data)))
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
