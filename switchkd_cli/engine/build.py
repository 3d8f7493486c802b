"""A recipe's names -> objects: the student, the teacher, data, paths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed

from switchkd_cli import registry
from switchkd_cli.engine.compatibility import Vocabulary, agree, check_alone, ended, noted, positions
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.hub import fetch
from switchkd_cli.engine.models.any_checkpoint import read_whole
from switchkd_cli.engine.models.from_parts import design
from switchkd_cli.engine.models.llava import Blueprint, Llava
from switchkd_cli.engine.paths import Paths
from switchkd_cli.recipe.schema import Checkpoint, DataSet, Model, Recipe, Stage


@dataclass(frozen=True)
class Pair:
    """A recipe's models, known to be whole and to fit each other before any weight is read."""

    student: Blueprint
    teacher: Blueprint | None
    vocabulary: Vocabulary
    notes: tuple[str, ...]
    """What was decided while reading, a line each."""

    def build(self, seed: int) -> Paths:
        """The models themselves; fresh weights are drawn from `seed`."""
        set_seed(seed)
        student = self.student.build()
        return Paths(student, self.teacher.build() if self.teacher else None, self.vocabulary.shared)

    def positions(self, data: str, stages: Sequence[Stage]) -> dict[str, int]:
        """See `contract.positions`."""
        return positions(data, stages, self.student.config, self.teacher.config if self.teacher else None)


def check_checkpoint(
    name: str, who: str = "checkpoint", *, allow_pickle: bool = False, speaks: bool = True
) -> Blueprint:
    """A whole checkpoint, all but its weights, of which the files' headers are read. No remote code is run.

    `speaks`: see `check_alone`. Raises UserError for a folder that is empty, broken or of another family.
    """
    blueprint = read_whole(fetch(name, who, allow_pickle=allow_pickle))
    check_alone(blueprint, who, speaks=speaks)
    return ended(blueprint, who) if speaks else blueprint


def check_model(spec: Model, who: str, *, speaks: bool = True) -> Blueprint:
    """All of a recipe's model but its weights, which are known to be there."""
    if isinstance(spec, Checkpoint):
        return check_checkpoint(spec.checkpoint, who, allow_pickle=spec.allow_pickle, speaks=speaks)
    blueprint = design(spec, who)
    check_alone(blueprint, who, speaks=speaks)
    return blueprint


def check_pair(recipe: Recipe, *, with_teacher: bool) -> Pair:
    """Student and (if asked for) teacher, checked by themselves and against each other; no weight is read."""
    student = check_model(recipe.student, "student", speaks=recipe.needs_template)
    teacher = None
    if recipe.teacher is not None and (with_teacher or recipe.evaluation is not None):
        teacher = check_model(recipe.teacher, "teacher", speaks=recipe.evaluation is not None)
    notes = (*student.notes, *(teacher.notes if teacher else ()))
    if not with_teacher:
        teacher = None
    vocabulary = agree(student, teacher, [term for stage in recipe.stages for term in stage.objective])
    return Pair(student, teacher, vocabulary, (*notes, *noted(student, teacher), str(vocabulary)))


def load(checkpoint: str, who: str = "checkpoint") -> Llava:
    """A whole checkpoint in float32, to train or to save: whether it can be asked is not looked at.

    Raises UserError where `check_checkpoint` and its blueprint's `build` do.
    """
    return check_checkpoint(checkpoint, who, speaks=False).build()


def build_data(
    spec: DataSet, model: Llava, cache: Path, positions: Mapping[str, int] | None = None
) -> Conversations:
    """The rows of one named data set as examples for `model`, looked at before they are trained on.

    `positions`: see `Conversations`.

    Raises UserError as `open_data` does, and where more rows can't be used than the data set allows.
    """
    data = open_data(spec, model, cache, positions)
    data.inspect()
    return data


def open_data(
    spec: DataSet, model: Llava, cache: Path, positions: Mapping[str, int] | None = None
) -> Conversations:
    """The same rows, none of them prepared yet: for who takes a few of what was trained on.

    Raises UserError for missing or broken files.
    """
    rows = registry.resolve("source", spec.source)(cache, **spec.parameters)
    limits = {"max_length": spec.max_length, "max_faults": spec.max_faults, "positions": positions}
    return Conversations(rows, model.processor, model.image_tokens, template=spec.template, **limits)
