"""`Run`: one row of a recipe with one seed, as data, and the keys under which its outputs are found again."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from switchkd_cli.errors import UserError
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.fingerprint import Fingerprints, digest
from switchkd_cli.recipe.schema import Model, Recipe

# Fields that no result depends on, so they are no part of a key. Of `deepspeed` a key has `Recipe.arithmetic` instead.
NOT_IN_KEYS = {"title", "rows", "controls", "world", "stand_ins", "checkpoints", "check", "trackers", "deepspeed"}
NOT_IN_KEYS_OF_STAGES = {"activation_checkpointing"}
NAMED_PARTS = ("checkpoint", "vision", "language", "tokenizer", "image_processor")
NAMES = ("recipe", "row", "title", "paper")


@dataclass(frozen=True)
class Run:
    """One row of a recipe with one seed: everything a training process needs to know."""

    recipe: str
    row: str
    title: str
    config: Recipe
    paper: Mapping[str, float]
    fingerprints: Fingerprints = field(default_factory=Fingerprints, compare=False, repr=False)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def names(self) -> dict[str, Any]:
        """What its row is called, and the paper's scores of that row: a run that is reused for another has its own."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def name(self) -> str:
        """The name on the screen."""
        return f"{self.title} (seed {self.seed})"

    @cached_property
    def text(self) -> str:
        """The resolved recipe: the row and overrides applied, the rows left out. It is a recipe itself."""
        return yaml_positions.write(self.config.model_dump(mode="json", exclude={"rows", "controls"}))

    @cached_property
    def inputs(self) -> dict[str, str | None]:
        """A digest of each file or folder outside the recipe that results depend on, by the field that names it."""
        config = self.config
        models, data = self._models(config.student, config.teacher), self._data(config.data)
        return models | data | self.fingerprints.evaluation(config.evaluation)

    @cached_property
    def key(self) -> str:
        """A digest of all that the run's results depend on: a changed checkpoint changes it, a changed title doesn't."""
        config = self.config
        fields = config.model_dump(mode="json", exclude=NOT_IN_KEYS) | {"precision": config.arithmetic}
        fields["stages"] = [_dump(stage, NOT_IN_KEYS_OF_STAGES) for stage in config.stages]
        return digest(fields, self.inputs)

    @property
    def compared(self) -> str:
        """By what a run that is reused for this one was compared with it."""
        looser = {name: spec.images_by for name, spec in self.config.data.items() if spec.images_by != "content"}
        exceptions = [f"images of {name} by {how}" for name, how in looser.items()]
        return ", ".join(["same recipe, models and data, byte by byte", *exceptions])

    def changed(self) -> list[str]:
        """Return the fields whose inputs have changed since the keys were computed."""
        return changed_fields(self.inputs, replace(self, fingerprints=Fingerprints()).inputs)

    def leading(self) -> Self:
        """Return the run of the leading stages, those that need no teacher; the run itself where that is all it does.

        Raises UserError where the first stage already needs the teacher.
        """
        count = next((i for i, stage in enumerate(self.config.stages) if stage.needs_teacher), None)
        if count == 0:
            problem = f"{self.recipe}: {self.row}: the first stage ({self.config.stages[0].name}) needs the teacher"
            raise UserError(problem, hint="run the whole recipe with switchkd distill")
        config = self.config.model_copy(update={"stages": self.config.stages[:count], "evaluation": None})
        if config == self.config:
            return self
        return replace(self, row=f"{self.row}.pretrain", title=f"{self.title}, pre-trained", config=config, paper={})

    def stage_key(self, index: int) -> str:
        """Return a digest of all that the output of stage `index` depends on; rows that differ later share it."""
        config = self.config
        stages = config.stages[: index + 1]
        teacher = config.teacher if any(stage.needs_teacher for stage in stages) else None
        data = sorted({name for stage in stages for name in stage.data_sets})
        adapted = config.switch.adapter is not None and any("switch" in stage.paths for stage in stages)
        return digest(
            [_dump(config.student), _dump(teacher), self._models(config.student, teacher)],
            [{name: _dump(config.data[name]) for name in data}, self._data(data)],
            [_dump(stage, NOT_IN_KEYS_OF_STAGES) for stage in stages],
            [config.seed, config.arithmetic],
            *[_dump(config.switch)] * adapted,
        )

    @property
    def teacher_digest(self) -> str:
        """A digest of the teacher alone, and of its arithmetic."""
        config = self.config
        return digest(_dump(config.teacher), self._models(None, config.teacher), config.arithmetic)

    @property
    def teacher_key(self) -> str:
        """A digest of all that the teacher's scores and the baselines depend on."""
        config = self.config
        asked = _dump(config.evaluation), *self.fingerprints.evaluation(config.evaluation).values()
        return digest(_dump(config.teacher), self._models(None, config.teacher), *asked)

    def _models(self, student: Model | None, teacher: Model | None) -> dict[str, str | None]:
        names = [*model_names("student", student), *model_names("teacher", teacher)]
        return {field: self.fingerprints.named(name) for field, name in names}

    def _data(self, names: Iterable[str]) -> dict[str, str | None]:
        """Return the digests of files that parameters of data sets name, and of the images of their examples."""
        digests: dict[str, str | None] = {}
        for name in names:
            digests |= self.fingerprints.data(f"data.{name}", self.config.data[name])
        return digests


def model_names(field: str, model: Model | None) -> Iterator[tuple[str, str]]:
    """Yield the dotted field and the name of each folder or hub id in a model's description."""
    for part in NAMED_PARTS:
        if isinstance(name := getattr(model, part, None), str):
            yield f"{field}.{part}", name


def changed_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the fields of inputs that are not the same."""
    return [field for field in {**before, **now} if before.get(field) != now.get(field)]


def _dump(model: Any, without: Collection[str] = ()) -> Any:
    return None if model is None else model.model_dump(mode="json", exclude=set(without))
