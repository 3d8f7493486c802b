"""Build what a recipe names: the student, the teacher, their logits paths, data."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import set_seed

from switchkd_cli import registry
from switchkd_cli.engine import compatibility
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.prompt_template import end_token, template_text, tokens_after_answer
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.hub import fetch
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.blueprint import Blueprint, max_positions
from switchkd_cli.engine.models.family import WHOLE_HINT, Family
from switchkd_cli.engine.models.layer_forwards import offload
from switchkd_cli.engine.models.low_bits import pack
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.paths import FeatureAdapter, Paths
from switchkd_cli.engine.token_map import TokenMap
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import BUILT_IN, LEARNING, Checkpoint, DataSet, Model, Recipe
from switchkd_cli.report.grouping import grouped

OF_COMMON_TOKENS = ("student_ce", "kl/student", "agreement/student", "validation/agreement")


class Pair(NamedTuple):
    """A recipe's models, checked to be complete and to fit each other before any weight is read."""

    student: Blueprint
    teacher: Blueprint | None
    vocabulary: compatibility.Vocabulary
    notes: tuple[str, ...]
    """Decisions made while reading, one line each."""
    recipe: Recipe
    teachers: Mapping[str, Blueprint] = {}

    def build(self, seed: int = 0, trained: Path | None = None) -> Paths:
        """Build the models and return their paths; fresh weights are drawn from `seed`.

        `trained`: where a finished student is, whose adapter is not kept.
        """
        set_seed(seed)
        student = load(str(trained)) if trained else self.student.build()
        teacher, adapter = self._build_teacher(), None
        teachers = {name: of.build() for name, of in self.teachers.items()}
        if self.recipe.switch.adapter and self.teacher is not None and not trained:
            unlike = any(fact.verdict == "impossible" for fact in self.teacher.facts(self.student))
            adapter = FeatureAdapter.between(self.student, self.teacher, seed, as_pictures=unlike)
        further: dict[str, Any] = {"adapter": adapter, "teachers": teachers, "known": self.recipe.known_paths}
        return Paths(student, teacher, self.vocabulary.shared, self.tokens(), **further)

    def _build_teacher(self) -> VisionLanguageModel | None:
        spec = self.recipe.teacher
        if self.teacher is None or spec is None:
            return None
        teacher = self.teacher.build()
        if spec.bits is not None:
            pack(teacher.language.layers, spec.bits)
        if spec.weights == "offloaded":
            offload(teacher)
        return teacher

    def tokens(self) -> TokenMap | None:
        """Return how the vocabularies of two models are mapped that read their own tokens; None of others."""
        if self.teacher is None or not self.vocabulary.own:
            return None
        ours, theirs = self.student.inputs, self.teacher.inputs
        ends = _end(ours, self.recipe.data[self.recipe.stages[-1].trained_on[0]].template), _end(theirs, None)
        return TokenMap(ours.tokenizer, theirs.tokenizer, ends)

    def open_data(self, name: str, student: VisionLanguageModel, cache: Path) -> Conversations:
        """Open a data set of the recipe for its student, and for its teacher where that reads its own tokens."""
        data = open_data(self.recipe.data[name], student.inputs, cache)
        stages = [stage for stage in self.recipe.stages if name in stage.data_sets]
        read = [path for stage in stages for path in stage.readings.values()]
        # whatever terms read of it: mixers, validations and the look at its images ask it plainly
        read += [BUILT_IN["teacher"] for stage in stages if stage.needs_teacher]
        models = {**dict.fromkeys(LEARNING, self.student), "teacher": self.teacher, **self.teachers}
        groups = grouped(((path.language, path.prompt), of) for of, path in self.recipe.known_paths.items())
        for (model, prompt), readers in groups.items():
            used = any(model in path.models and path.prompt == prompt for path in read)
            if used and (blueprint := models[model]) and (prompt or model not in LEARNING):
                how = {"by_bytes": bool(self.vocabulary.own), "readers": tuple(readers), "prompt": prompt}
                data = shown_to(data, self.student, blueprint, model, **how)
        return data


def check_checkpoint(
    name: str,
    who: str = "checkpoint",
    *,
    family: str | None = None,
    allow_pickle: bool = False,
    needs_template: bool = True,
) -> Blueprint:
    """Read and check a checkpoint without its weights, of which only the headers are read. No remote code is run.

    `family`: its family (None: the one that recognises it). `needs_template`: see `check_alone`. Raises
    UserError for a folder that is empty, broken or of another family.
    """
    folder = fetch(name, who, allow_pickle=allow_pickle)
    of = registry.resolve("family", family) if family else family_of(folder.json("config.json"), folder)
    blueprint = of.read(folder)
    compatibility.check_alone(blueprint, who, needs_template=needs_template)
    return compatibility.with_end_tokens(blueprint, who) if needs_template else blueprint


def family_of(config: Mapping[str, Any], who: object = "checkpoint") -> Family:
    """Return the family that recognises a config.json. Raises UserError where none does."""
    families = [registry.resolve("family", name) for name in registry.FAMILIES]
    for family in families:
        if family.recognises(config):
            return family
    kind = f"is a {config['model_type']} checkpoint" if "model_type" in config else "names no model_type"
    raise UserError(f"{who} {kind}, which no family reads ({', '.join(registry.FAMILIES)})", hint=WHOLE_HINT)


def check_model(spec: Model, who: str, *, needs_template: bool = True) -> Blueprint:
    """Read and check one model of a recipe: all except its weights, whose files are checked to exist."""
    if isinstance(spec, Checkpoint):
        how = {"allow_pickle": spec.allow_pickle, "needs_template": needs_template}
        return check_checkpoint(spec.checkpoint, who, family=spec.family, **how)
    blueprint = registry.resolve("family", spec.family).from_parts(spec, who)
    compatibility.check_alone(blueprint, who, needs_template=needs_template)
    return blueprint


def check_pair(recipe: Recipe, *, with_teacher: bool) -> Pair:
    """Check student and (with `with_teacher`) teacher, each alone and against each other; no weight is read."""
    student = check_model(recipe.student, "student", needs_template=recipe.needs_template)
    teacher = None
    if recipe.teacher is not None and (with_teacher or recipe.evaluation is not None):
        teacher = check_model(recipe.teacher, "teacher", needs_template=recipe.evaluation is not None)
    notes = (*student.notes, *(teacher.notes if teacher else ()))
    if not with_teacher:
        teacher = None
    terms = [term for stage in recipe.stages for term in stage.objective]
    differences = compatibility.check_fit(compatibility.compare(student, teacher, terms), recipe.remedies)
    vocabulary = compatibility.shared_vocabulary(student, teacher, terms)
    if teacher is not None and vocabulary.own:
        compatibility.check_alone(teacher, "teacher")  # its chat template writes what it reads
        if refused := list(_of_common_tokens(recipe)):
            problems, hints = zip(*refused, strict=True)
            told = [f"{problem}: student and teacher read their own tokens" for problem in problems]
            raise UserError(told, "; ".join(dict.fromkeys(hints)))
    notes += (*differences, str(vocabulary))
    further = recipe.further_teachers if with_teacher else {}
    teachers = {name: check_model(of, name, needs_template=False) for name, of in further.items()}
    if teacher is not None:
        models = {"student": student, "teacher": teacher, **teachers}
        compatibility.check_paths(recipe.stages, models, adapted=recipe.switch.adapter is not None)
    return Pair(student, teacher, vocabulary, notes, recipe, teachers)


def _of_common_tokens(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield what of a recipe needs models that read the same tokens, and what to do about it."""
    chosen = [recipe.checkpoints.best]
    for stage in recipe.stages:
        where, further = f"stages.{stage.name}", sorted(stage.readings.keys() - {"student", "teacher", "switch"})
        if stage.own_answers:
            yield f"{where}.answers: own answers can't be written for the teacher", f"{where}.answers=null"
        if further:
            yield f"{where}: {', '.join(further)}", "terms of unlike tokenizers compare student, teacher and switch"
        if stage.mixer is not None:
            yield f"{where}.mixer: it compares tokens", "take the mixer out of the stage"
        chosen += [stage.validation.monitor] if stage.validation else []
    yield from ((f"{figure} needs common tokens", "choose by loss") for figure in chosen if figure in OF_COMMON_TOKENS)


def _end(inputs: InputProcessor, template: str | None) -> int | None:
    """Return the token that ends an answer in a template, as `Conversations` learns it."""
    end = end_token(inputs.tokenizer, tokens_after_answer(inputs, template_text(template, inputs)))
    return inputs.tokenizer.eos_token_id if end is None else end


def load(checkpoint: str, who: str = "checkpoint") -> VisionLanguageModel:
    """Load a checkpoint in float32, to train or to save it: its chat template is not checked.

    Raises the UserErrors of `check_checkpoint` and of `Blueprint.build`.
    """
    return check_checkpoint(checkpoint, who, needs_template=False).build()


def open_data(spec: DataSet, inputs: InputProcessor, cache: Path) -> Conversations:
    """Open one named data set as examples for a model, without inspecting its rows.

    Raises UserError for missing or broken files.
    """
    return read_rows(open_rows(spec, cache), spec, inputs)


def open_rows(spec: DataSet, cache: Path) -> Rows:
    """Open the rows of one named data set. Raises UserError for missing or broken files."""
    return registry.resolve("source", spec.source)(cache, **spec.parameters)


def read_rows(rows: Rows, spec: DataSet, inputs: InputProcessor) -> Conversations:
    """Return rows as examples for a model, by what a data set says about them, of as many positions as the model has."""
    fields = spec.model_dump(include={"template", "max_length", "max_faults"})
    return Conversations(rows, inputs, positions=_limit("student", inputs), **fields)


def shown_to(
    data: Conversations, student: Blueprint, teacher: Blueprint, who: str = "teacher", **how: Any
) -> Conversations:
    """Return a student's examples for the teacher, too: the same tokens, or its own where it can't read the student's.

    It can't as it has another tokenizer (`by_bytes`), reads a `prompt`, or an image has another number of visual tokens.
    """
    limit = _limit(who, teacher.inputs)
    if how.get("by_bytes") or how.get("prompt") or student.inputs.usual.text != teacher.inputs.usual.text:
        return data.with_teacher(teacher.inputs, limit, **how)
    both = copy.copy(data)
    both.positions = {**data.positions, **limit}
    return both


def _limit(who: str, inputs: InputProcessor) -> dict[str, int]:
    """Return a model's maximum positions, by its role; nothing where its config doesn't say it."""
    limit = max_positions(inputs.config)
    return {who: limit} if limit else {}
