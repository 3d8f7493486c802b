"""Check what a recipe's schema can't see: names that must exist elsewhere, and values that must fit one another.

Every check reads a recipe of which parts may be broken (`Strict.as_far_as_it_fits`), so that all problems come out in one pass.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import isdir
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from switchkd_cli import registry
from switchkd_cli.benchmarks import BENCHMARKS, ROW_METRICS, refusal
from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe import schema
from switchkd_cli.recipe.problems import Problem, fitted, misfit
from switchkd_cli.recipe.schema import BUILT_IN, LEARNING, VALIDATION, PathSpec, Recipe, Stage, Term, through
from switchkd_cli.recipe.yaml_positions import Step

Location = tuple[Step, ...]

NO_INFINITY = ConfigDict(allow_inf_nan=False)
AVERAGE = "average"  # allowed next to the benchmarks' names in a row's printed numbers

# The parts that a term's gradient may reach, by what its loss reads of a path: later ones have no influence on it.
REACH_OF_KIND = {"features": {"vision", "adapter"}, "tokens": {"vision", "adapter", "projector"}}

Paths = Mapping[str, PathSpec]
"""The paths that a recipe's terms may name."""


def check(data: Mapping[str, Any], unfit: Iterable[Problem] = ()) -> Iterator[Problem]:
    """Yield every problem of a recipe's plain data that needs more than one field to be seen.

    `unfit`: what is wrong by the schema; nothing more is said about these fields, nor about what is in them.
    """
    recipe, wrong = Recipe.as_far_as_it_fits(data), {path for path, _ in unfit}
    for checks in (_models, _paths, _names, _stages, _switch, _sharding, best_figure, _evaluation):
        for path, problem in checks(recipe):
            if wrong.isdisjoint(path[:end] for end in range(1, len(path) + 1)):
                yield path, problem


def _models(recipe: Recipe) -> Iterator[Problem]:
    for field, model in recipe.models.items():
        path = tuple(field.split("."))
        yield from _unknown((*path, "family"), "family", model.family, registry.FAMILIES)
        if isinstance(model, schema.Parts) and isinstance(model.language, schema.Fresh) and model.tokenizer is None:
            yield (*path, "tokenizer"), "missing: a fresh language model needs a tokenizer"
    if (teacher := recipe.teacher) is None:
        if recipe.teachers:
            yield ("teachers",), "the recipe has no teacher: name the first one `teacher`"
        return
    if teacher.bits and teacher.weights != "whole":
        yield ("teacher", "weights"), f"a teacher of {teacher.bits} bits stays whole, got {teacher.weights!r}"
    for i, stage in enumerate(recipe.stages):
        if teacher.weights == "sharded" and stage.teacher_states != "batched":
            told = f"a sharded teacher computes the batches of all processes together, got {stage.teacher_states!r}"
            yield ("stages", i, "teacher_states"), told


def _paths(recipe: Recipe) -> Iterator[Problem]:
    models = [*LEARNING, "teacher", *recipe.teachers]
    through_models = [name for name, path in recipe.known_paths.items() if not path.mean]
    for at in (*(("teachers", name) for name in recipe.teachers), *(("paths", name) for name in recipe.paths)):
        if at[1] in (*BUILT_IN, "labels") or (at[0] == "paths" and at[1] in recipe.teachers):
            yield at, f"paths need different names, got {at[1]!r} twice"
    for name, path in recipe.paths.items():
        at = ("paths", name)
        modules = {key: getattr(path, key) for key in schema.MODULES}
        if len({*modules.values()}) == 1:
            modules = {"model": path.vision}
        for key, model in (*modules.items(), ("head", path.head)):
            yield from _unknown((*at, key), "model", model, models)
        for word in re.findall(r"\{(\w+)\}", path.prompt or ""):
            yield from _unknown((*at, "prompt"), "placeholder", word, ("question", "answer"))
        for i, of in enumerate(path.mean):
            yield from _unknown((*at, "mean", i), "path through models", of, through_models)
        alone = path.model_copy(update={"mean": (), "by": "equal", "temperature": 1.0})
        if path.mean and alone != PathSpec():
            yield at, "is either the mean of paths or goes through models"
        if (path.by == "loss" and not path.mean) or (path.temperature != 1.0 and path.by != "loss"):
            yield at, "`by` is for a mean of paths, `temperature` for `by: loss`"


def _names(recipe: Recipe) -> Iterator[Problem]:
    """Yield names in data sets, trackers and rows that mean nothing."""
    for name, spec in recipe.data.items():
        yield from _data_set(spec, ("data", name))
    yield from _repeated("trackers", ("trackers",), recipe.trackers)
    for i, name in enumerate(recipe.trackers):
        yield from _unknown(("trackers", i), "tracker", name, registry.TRACKERS)
    for i, name in enumerate(recipe.controls):
        yield from _unknown(("controls", i), "row", name, recipe.rows)
    for row in recipe.rows:
        for name in recipe.rows[row].paper:
            yield from _unknown(("rows", row, "paper", name), "benchmark", name, [*BENCHMARKS, AVERAGE])


def _data_set(spec: schema.DataSet, path: Location) -> Iterator[Problem]:
    """Yield an unknown template, and what is wrong with the source, its parameters, and a format of the recipe's own."""
    yield from _unknown((*path, "template"), "template", spec.template, registry.TEMPLATES)
    yield from _registered("source", spec.source, spec.parameters, path)
    value, path = spec.parameters.get("format"), (*path, "parameters", "format")
    yield from _unknown(path, "format", value, registry.FORMATS)
    if isinstance(value, Mapping):
        yield from (((*path, *inside), problem) for inside, problem in fitted(schema.RowFormat, value)[1])


def _stages(recipe: Recipe) -> Iterator[Problem]:
    yield from _repeated("stages", ("stages",), [stage.name for stage in recipe.stages], "name")
    for i, stage in enumerate(recipe.stages):
        path: Location = ("stages", i)
        yield from _mixture(stage, path, recipe.data)
        if (stage.steps is None) == (stage.epochs is None):
            got = "neither" if stage.steps is None else "both"
            yield (*path, "steps"), f"a stage takes either steps or epochs, got {got}"
        if stage.micro_batch and stage.batch % stage.micro_batch:
            yield (*path, "micro_batch"), f"must divide batch ({stage.batch}), got {stage.micro_batch}"
        yield from _mixer(stage, (*path, "mixer"), has_teacher=recipe.teacher is not None)
        yield from _validation(stage, (*path, "validation"), recipe.stages[:i], recipe.data)
        if stage.lora is not None and stage.train and "language" not in stage.train:
            trained = list(stage.train)
            yield (*path, "lora"), f"trains adapters of the language model: add language to train, got {trained}"
        if stage.lora is not None and stage.bits is not None:
            yield (*path, "bits"), f"rounds weights that learn, with lora none of them do: got {stage.bits}"
        yield from _registered("schedule", stage.schedule, stage.schedule_parameters, path)
        yield from _objective(stage, path, recipe)


def _mixture(stage: Stage, path: Location, data_sets: Mapping[str, schema.DataSet]) -> Iterator[Problem]:
    """Yield what is wrong with the data sets that a stage trains on."""
    for i, name in enumerate(stage.trained_on):
        place = ("data",) if isinstance(stage.data, str) else ("data", i, "use")
        yield from _unknown((*path, *place), "data set", name, data_sets)
    yield from _repeated("data sets of a mixture", (*path, "data"), stage.trained_on, "use")
    templates = {data_sets[name].template for name in stage.trained_on if name in data_sets}
    if len(templates) > 1:  # the student is saved with one
        names = ", ".join(sorted(template or "the model's own" for template in templates))
        yield (*path, "data"), f"the data sets of a mixture have one template, got {names}"


def _mixer(stage: Stage, path: Location, *, has_teacher: bool) -> Iterator[Problem]:
    """Yield an unknown rule, and what of a stage's mixer doesn't fit it: weights are a mixture's, rows have candidates."""
    if (mixer := stage.mixer) is None:
        return
    by = mixer.by
    yield from _registered("mixer", by, mixer.parameters, path)
    if not has_teacher:
        yield (*path, "by"), f"the recipe has no teacher to compare the student with, got {by!r}"
    if stage.steps and mixer.rounds > stage.steps:
        yield (*path, "rounds"), f"a round takes a step or more, and the stage has {stage.steps:,}: got {mixer.rounds}"
    if by not in registry.REGISTRIES["mixer"]:
        return
    of_sets = registry.signature("mixer", by).of_sets
    given = {key for key, field in schema.Mixer.model_fields.items() if getattr(mixer, key) != field.default}
    what, unused = ("sets weights", MIXER_OF_ROWS) if of_sets else ("chooses rows", MIXER_OF_SETS)
    for key in [key for key in unused if key in given]:
        yield (*path, key), f"{by} {what}: leave it out, got {getattr(mixer, key)}"
    if of_sets and isinstance(stage.data, str):
        yield (*path, "by"), f"{by} {what}: the stage needs a mixture, got data {stage.data!r}"
    if not of_sets and given.isdisjoint(("candidates", "variants", "again")):
        yield path, f"{by} has nothing to choose from: give it candidates, variants or again"
    if not of_sets and "strength" in given and "variants" not in given:
        yield (*path, "strength"), f"is that of variants, which this mixer doesn't have, got {mixer.strength}"


MIXER_OF_SETS = ("rows",)  # fields that are for rules which set weights
MIXER_OF_ROWS = ("candidates", "variants", "again", "strength")


def _validation(stage: Stage, path: Location, before: Sequence[Stage], data_sets: Iterable[str]) -> Iterator[Problem]:
    """Yield what is wrong with a stage's validation. The stages `before` must not train on its examples either."""
    if (validation := stage.validation) is None:
        return
    name, share = validation.data, validation.share
    yield from _unknown((*path, "data"), "data set", name, data_sets)
    if (name is None) == (share is None):
        got = "neither" if name is None else "both"
        yield (*path, "data"), f"a validation takes either data or share, got {got}"
    if share is not None and not isinstance(stage.data, str):
        yield (*path, "share"), f"a mixture has none: name a data set, validation.data, got {share!r}"
    for other in (*before, stage):
        if name in other.trained_on:
            yield (*path, "data"), f"stage {other.name} trains on it, name another or a share, got {name!r}"
        theirs = other.validation.share if other.validation is not None else None
        if share is not None and stage.data in other.trained_on and theirs != share:
            problem = f"stage {other.name} trains on these examples: it needs this share, got {share!r}"
            yield (*path, "share"), problem
    yield from _figure((*path, "monitor"), validation.monitor, _validation_figures(stage))


def _validation_figures(stage: Stage) -> list[str]:
    """Return the names of the figures of a stage's validation."""
    of_data = [term.name for term in stage.objective if term.answers != "own"]  # it asks for no own answers
    names = ["loss", "exact_match", *["agreement"] * stage.needs_teacher, *(f"loss/{name}" for name in of_data)]
    return [VALIDATION + name for name in names]


def _figure(path: Location, name: str | None, known: Sequence[str]) -> Iterator[Problem]:
    """Yield an unknown figure, or why the stage's validation has no agreement."""
    if name == f"{VALIDATION}agreement" and name not in known:
        yield path, f"no term of the stage reads the teacher, got {name!r}"
    else:
        yield from _unknown(path, "figure", name, known)


def _needs_teacher(known: Paths, *sides: str) -> bool:
    return any(not path.models.issubset(LEARNING) for side in sides for path in through(side, known).values())


def _objective(stage: Stage, path: Location, recipe: Recipe) -> Iterator[Problem]:
    terms: list[tuple[Location, Term]] = [((*path, "objective", i), term) for i, term in enumerate(stage.objective)]
    yield from _repeated("terms", (*path, "objective"), [term.name for term in stage.objective], "name")
    yield from (((*path, "train"), twice) for _, twice in _repeated("trained parts", (), stage.train))
    for part, scale in stage.lr_scale.items():
        place = (*path, "lr_scale", part)
        if scale == 0 and part in stage.train:
            yield place, f"trains nothing of it: take it out of train instead, got {scale}"
        if stage.train and part not in stage.train:
            yield place, f"the stage does not train it, got {part!r} (trained: {', '.join(stage.train)})"
    known = recipe.known_paths
    yield from _answers(stage, path, terms, known)
    size = stage.micro_batch or stage.batch
    if size % 2 and any(of.images == "mixed" for of in stage.readings.values()):
        yield (*path, "micro_batch"), f"images are mixed by two examples of a micro-batch: an even number, got {size}"
    for place, term in terms:
        yield from _loss(term, place, known)
        yield from _sides(term, place, stage.train, recipe)
        yield from _focus(term, (*place, "focus"), recipe)
    reached = set[str]().union(*(_reach(term, known) for term in stage.objective if term.weight != 0))
    silent = " (terms of weight 0 aside)" * any(term.weight == 0 for term in stage.objective)
    for part in stage.train:
        if terms and part not in reached:
            yield (*path, "train"), f"no term of the objective trains it{silent}, got {part!r}"


def _answers(stage: Stage, path: Location, terms: Iterable[tuple[Location, Term]], known: Paths) -> Iterator[Problem]:
    """Yield what doesn't fit a stage's own answers: other settings, and terms that have nothing to compare, or no right answer."""
    own = stage.answers.own if stage.answers is not None else 0
    if own and stage.teacher_states == "cached":
        yield (*path, "teacher_states"), "own answers are new in every step (did you mean 'by_row'?), got 'cached'"
    for place, term in terms:
        to_labels, answers = term.to == "labels", term.answers
        if answers in ("own", "both") and to_labels:
            yield (*place, "answers"), f"only given answers have labels, got {answers!r}"
        elif answers == "own" and not own:
            yield (*place, "answers"), "the stage gives no own answers (`answers: {own: 0.5}`), got 'own'"
        elif own == 1 and answers in ("given", None) and (to_labels or answers) and term.weight != 0:
            yield (*path, "answers", "own"), f"leaves {term.name} no given answer, got {own}"
        elif answers == "own" and term.on in ("chosen", "rejected", "pair"):
            yield (*place, "answers"), f"no own answer is preferred: {term.on} ones are given, got 'own'"
        elif own and answers is None and not to_labels and _reads_right_answers(term, known):
            told = "it reads which tokens are right, and those of own answers all are: `given`, `own` or `both`"
            yield (*place, "answers"), f"missing: {told}"
        if own and term.alignment == "bytes":
            yield (*place, "alignment"), "own answers are compared at equal positions, got 'bytes'"


def _reads_right_answers(term: Term, known: Paths) -> bool:
    """Whether a term that isn't to the labels reads them: in its loss, its score, or a mean by the loss on them."""
    read = [of for of in (term.signature, term.score) if of and not of.of_preferences]
    return any("targets" in of.positional for of in read) or (term.to in known and known[term.to].by == "loss")


def _reach(term: Term, known: Paths = BUILT_IN) -> set[str]:
    """Return the parts that a term's gradient reaches; all parts of its path where its loss is unknown."""
    reach = known.get(term.of, BUILT_IN["student"]).trains
    kinds = [kind for side, kind in term.signature.reads if side == "student"]
    return reach & set().union(*(REACH_OF_KIND.get(kind, reach) for kind in kinds)) if kinds else reach


def _loss(term: Term, path: Location, known: Paths) -> Iterator[Problem]:
    """Yield what does not fit the loss of a term: its name, parameters, `to` and `on`."""
    loss, of, to, on, signature = term.loss, term.of, term.to, term.on, term.signature
    yield from _registered("loss", loss, term.parameters, path)
    if loss not in registry.LOSSES:
        return
    needs_labels = not any(side == "teacher" for side, _ in signature.reads)
    if needs_labels and to != "labels":
        yield (*path, "to"), f"{loss} compares with the labels, got {to!r} (did you mean 'labels'?)"
    if not needs_labels and to == "labels":
        kinds = " and ".join(dict.fromkeys(kind for _, kind in signature.reads))
        yield (*path, "to"), f"{loss} compares two models' {kinds}, got 'labels' (did you mean 'teacher'?)"
    by_bytes = term.alignment == "bytes"
    readers = {known[side].language for side in (of, to) if side in known and not known[side].mean}
    across = len(readers) == 2 and "teacher" in readers and not readers.isdisjoint(LEARNING)
    if signature.of_spans and not by_bytes:
        yield (*path, "alignment"), f"{loss} compares bytes, got 'positions' (did you mean 'bytes'?)"
    if by_bytes and (signature.of_images or not across):
        yield (*path, "alignment"), "only what a student's and a teacher's tokens say is compared by bytes, got 'bytes'"
    if signature.of_preferences and on != "pair":
        yield (*path, "on"), f"{loss} compares a preferred answer with a rejected one: 'pair', got {on!r}"
    if "student_image" in signature.positional and on != "all":
        yield (*path, "on"), f"{loss} compares visual tokens with text: 'all', got {on!r}"
    if by_bytes and on != "answer":
        yield (*path, "on"), f"bytes are compared in answers, got {on!r} (did you mean 'answer'?)"
    if signature.of_images and term.answers is not None:
        yield (*path, "answers"), f"{loss} compares whole images: leave it out, got {term.answers!r}"
    if signature.of_images and on != "answer":
        yield (*path, "on"), f"{loss} compares whole images, no positions: leave it out, got {on!r}"


def _sides(term: Term, path: Location, train: Sequence[str], recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the paths that a term names, and with what it trains."""
    of, to, trained, known = term.of, term.to, ", ".join(train), recipe.known_paths
    named = sorted({*term.signature.sides} - {"student", "teacher"})
    more = ", ".join(sorted(term.kinds - {"logits"}))
    for key, side in (("of", of), ("to", to), *(("loss", name) for name in named)):
        what = f"path, which {term.loss} reads" if key == "loss" else "path"
        yield from _unknown((*path, key), what, side, [*known, *["labels"] * (key == "to")])
        if _needs_teacher(known, side) and recipe.teacher is None:
            yield (*path, key), f"the recipe has no teacher, got {side!r}"
        if more and key != "of" and side in known and known[side].mean:
            yield (*path, key), f"a mean of paths has logits alone, {term.loss} reads {more}, got {side!r}"
        if side in known and known[side].by == "loss" and term.on in ("image", "rejected"):
            yield (*path, "on"), f"{side} weighs paths by their loss on the answers, got {term.on!r}"
    read = [made for name in term.paths for made in through(name, known).values()]
    if len({made.prompt for made in read}) > 1 and term.on != "answer":
        yield (*path, "on"), f"paths with other prompts are compared at the answers alone, got {term.on!r}"
    if to == "labels" and any(made.images == "mixed" for made in read):
        yield (*path, "of"), f"mixed images have no right answers: compare it with a path, got {of!r} and 'labels'"
    if of not in known:
        return
    reach = known[of].trains
    if known[of] == known.get(to):
        yield (*path, "to"), f"a term compares two different things, got {to!r} twice"
    elif not reach:
        yield (*path, "of"), f"the {of} is frozen, so this term trains nothing, got {of!r}"
    elif of != "student" and train and reach.isdisjoint(train):
        parts = " and ".join(sorted(reach - {"adapter"}))
        yield (*path, "of"), f"the {of} trains only {parts}, the stage only {trained}, got {of!r}"
    elif train and (reach := _reach(term, known)).isdisjoint(train):
        parts = " and ".join(sorted(reach))
        yield (*path, "loss"), f"trains only {parts}, the stage only {trained}, got {term.loss!r}"


def _focus(term: Term, path: Location, recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the focus of a term: its score, and what its loss and its score read."""
    if (focus := term.focus) is None:
        return
    yield from _registered("focus", focus.by, focus.parameters, path)
    reads = [kind for _, kind in term.signature.reads if kind != "logits"]
    if term.signature.of_preferences or "teacher_rows" in term.signature.positional:
        reads = ["pairs" if term.signature.of_preferences else "matches"]
    if reads or term.alignment == "bytes":
        what = " and ".join(dict.fromkeys(reads)) or "bytes"
        yield path, f"weights positions of logits, and {term.loss} compares {what}, got {focus.by!r}"
    sides = registry.read_signature("focus", focus.by).sides
    for side in sides:
        yield from _unknown((*path, "by"), "path", side, recipe.known_paths)
    if recipe.teacher is None and _needs_teacher(recipe.known_paths, *sides):
        yield (*path, "by"), f"the recipe has no teacher, got {focus.by!r}"
    if focus.share is None and focus.mass != schema.Focus.model_fields["mass"].default:
        yield (*path, "mass"), f"is that of a `share` of the positions, which this focus doesn't have, got {focus.mass}"
    if focus.share is not None and focus.mass < focus.share < 1:
        told = f"these positions would get less than without a focus: {focus.share} or more, got {focus.mass}"
        yield (*path, "mass"), told


def _switch(recipe: Recipe) -> Iterator[Problem]:
    """Yield each stage that trains an adapter where there is none, or uses one that no stage has trained by then."""
    adapter, trained = recipe.switch.adapter, False
    if adapter is not None and recipe.teacher is None:
        yield ("switch", "adapter"), f"the recipe has no teacher, got {adapter!r}"
    for i, stage in enumerate(recipe.stages):
        path = ("stages", i, "train")
        trained = trained or "adapter" in stage.train
        if "adapter" in stage.train and adapter is None:
            yield path, "the recipe has none (add `switch: {adapter: linear}`), got 'adapter'"
        if adapter is not None and not trained and any(of.is_switch for of in stage.readings.values()):
            never = "the switch's adapter was never trained: add adapter here or before"
            yield path, f"{never}, got {', '.join(stage.train)}"


def _sharding(recipe: Recipe) -> Iterator[Problem]:
    zero, offload, fsdp = recipe.deepspeed.zero, recipe.deepspeed.offload, recipe.launcher == "fsdp"
    for what, needed in (("optimizer", 1), ("parameters", 3)):  # the first stage that shards it
        if offload == what and zero < needed:
            yield ("deepspeed", "offload"), f"needs zero: {needed} or more, got {what!r}"
    if fsdp and zero:
        yield ("deepspeed", "zero"), f"FSDP shards the training itself: leave it out, got {zero}"
    for i, stage in enumerate(recipe.stages):
        if (zero or fsdp) and stage.optimizer == "adamw_8bit":
            how = "launcher: fsdp" if fsdp else f"deepspeed.zero: {zero}"
            yield ("stages", i, "optimizer"), f"can't be sharded, got 'adamw_8bit' with {how}"
        if zero == 3 and stage.lora is not None and stage.lora.dora:
            yield ("stages", i, "lora", "dora"), "reads whole weights: needs deepspeed.zero: 2 or less, got True and 3"


def best_figure(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the figure that the best checkpoint is chosen by."""
    terms = [term for stage in recipe.stages for term in stage.objective]
    figures = [*schema.FIGURES, *dict.fromkeys(f"loss/{term.name}" for term in terms)]
    figures = [name for name in figures if not name.startswith(VALIDATION)]
    best, path = recipe.checkpoints.best, ("checkpoints", "best")
    if recipe.stages and recipe.stages[-1].validation is not None:  # the last stage's best model is saved
        yield from _figure(path, best, figures + _validation_figures(recipe.stages[-1]))
    elif best is not None and best.startswith(VALIDATION):
        yield path, f"the last stage has no `validation`, got {best!r}"
    else:
        yield from _unknown(path, "figure", best, figures)


def _evaluation(recipe: Recipe) -> Iterator[Problem]:
    if recipe.evaluation is None:
        return
    yield from ((("evaluation", *path), problem) for path, problem in check_evaluation(recipe.evaluation))
    # A scored model gets its questions in the template of its last stage.
    last = next((name for stage in recipe.stages[-1:] for name in stage.trained_on), "")
    template = recipe.data[last].template if last in recipe.data else None
    if registry.TEMPLATES.get(template or "", {}).get("questions") is False:
        problem = "leaves questions out, and the last stage trains with it: the model could not be scored"
        yield ("data", last, "template"), f"{problem}, got {template!r}"


def check_evaluation(evaluation: schema.Evaluation) -> Iterator[Problem]:
    """Yield every problem of a recipe's `evaluation`, by its fields."""
    world, items, folder = evaluation.world, evaluation.items, evaluation.tasks_path
    if world == "playground" and items is None:
        yield ("items",), "missing: the playground has no fixed number of questions"
    if world != "rows" and items == 1:
        yield ("items",), "a benchmark asks at least 2 questions (MME's come in pairs), got 1"
    yield from _repeated("benchmarks", ("benchmarks",), evaluation.benchmarks)
    if folder is not None and not isdir(folder):
        yield ("tasks_path",), f"no such folder, got {folder!r}"
    rows = [name for name in evaluation.benchmarks if name in ROW_METRICS]
    if evaluation.data is not None:
        yield from _data_set(evaluation.data, ("data",))
        if not rows:
            yield ("data",), "no benchmark asks its rows: name rows.exact, rows.anls ..."
    elif rows:
        yield ("data",), f"missing: {rows[0]} asks its rows"
    for i, name in enumerate(evaluation.benchmarks):
        path = ("benchmarks", i)
        if problem := refusal(name, folder):
            yield path, problem
        elif name in ROW_METRICS:
            continue
        elif world == "rows":
            yield path, f"is none of one's own rows, got {name!r} with world: rows"
        elif world == "hub" and not BENCHMARKS[name].published:
            yield path, f"exists only in the playground, got {name!r} with world: hub"
        elif world == "playground" and name not in BENCHMARKS:
            yield path, f"the playground has no questions for it, got {name!r} (with world: hub it can be asked)"


def _registered(kind: registry.Kind, name: str, given: Mapping[str, Any], path: Location) -> Iterator[Problem]:
    """Yield an unknown loss, source or schedule, or what is wrong with its `given` parameters, by its signature's keywords."""
    field = "by" if kind in ("focus", "mixer") else kind
    yield from _unknown((*path, field), kind, name, registry.REGISTRIES[kind])
    if name not in registry.REGISTRIES[kind]:
        return
    keywords = registry.signature(kind, name).keywords
    path = (*path, "schedule_parameters" if kind == "schedule" else "parameters")
    for key in given:
        if key not in keywords:
            yield (*path, key), f"{name} takes no such parameter, got {key!r}{did_you_mean(key, keywords)}"
    values = {**{key: parameter.default for key, parameter in keywords.items()}, **given}
    for key, parameter in keywords.items():
        value = values[key]
        if value is parameter.empty:
            yield (*path, key), f"missing: {name} needs it"
        elif key in given or (given and value is not None):  # a default may not fit what is given
            strict = not isinstance(value, list | dict)  # `true` is no number
            try:
                adapter = TypeAdapter(parameter.annotation, config=NO_INFINITY)
                adapter.validate_python(value, strict=strict, context=values)
            except ValidationError as error:
                yield (*path, key), misfit(error.errors(include_url=False))


def _repeated(what: str, path: Location, names: Sequence[str], *field: Step) -> Iterator[Problem]:
    """Yield each name of a list at `path` that an earlier item has; `field` of an item holds it."""
    for i, name in enumerate(names):
        if name in names[:i]:
            yield (*path, i, *field), f"{what} need different names, got {name!r} twice"


def _unknown(path: Location, what: str, name: Any, known: Iterable[str]) -> Iterator[Problem]:
    if isinstance(name, str) and name not in known:
        yield path, f"unknown {what}, got {name!r}{did_you_mean(name, known)}"
