"""One run as data, and the keys under which its outputs are found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os.path import isfile
from typing import Any

from switchkd_cli.errors import UserError
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.fingerprint import Fingerprints
from switchkd_cli.recipe.schema import Checkpoint, Model, Recipe

UNKEYED = {
    "title",
    "rows",
    "controls",
    "world",
    "stand_ins",
    "checkpoints",
    "check",
    "deepspeed",  # but for what it computes in: `Recipe.arithmetic`
}  # what is said about a run, not what it does
UNKEYED_OF_A_STAGE = {"activation_checkpointing"}  # how it is computed, which changes no result
FORMAT = 2  # part of every key: raise it when the same recipe no longer means the same weights


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
    def name(self) -> str:
        """What it is called on the screen."""
        return f"{self.title} (seed {self.seed})"

    @cached_property
    def text(self) -> str:
        """The resolved recipe: row and overrides applied, rows gone. It is a recipe itself."""
        return yaml_positions.write(self.config.model_dump(mode="json", exclude={"rows", "controls"}))

    @cached_property
    def inputs(self) -> dict[str, str | None]:
        """A digest of each thing outside the recipe that the results depend on, by the field that names it."""
        config = self.config
        return self._models(config.student, config.teacher) | self._data(config.data)

    @cached_property
    def key(self) -> str:
        """A digest of all that the run's results depend on (titles do not count, changed checkpoints do)."""
        config = self.config
        said = config.model_dump(mode="json", exclude=UNKEYED) | {"precision": config.arithmetic}
        said["stages"] = [_dump(stage, UNKEYED_OF_A_STAGE) for stage in config.stages]
        return digest(said, self.inputs)

    @property
    def compared(self) -> str:
        """What a run that is reused for this one was compared by."""
        loose = {
            f"images of {name} by {spec.images_by}": None
            for name, spec in self.config.data.items()
            if spec.images_by != "content"
        }
        return ", ".join(["same recipe, models and data, byte by byte", *loose])

    def changed(self) -> list[str]:
        """The fields whose inputs are no longer what they were when the keys were computed."""
        now = replace(self, fingerprints=Fingerprints()).inputs
        return differing(self.inputs, now)

    def leading(self) -> Run:
        """The run of the leading stages that need no teacher; the run itself when that is all it does.

        Raises UserError when the first stage needs the teacher already.
        """
        count = next((i for i, stage in enumerate(self.config.stages) if stage.needs_teacher), None)
        if count == 0:
            first = self.config.stages[0].name
            raise UserError(
                f"{self.recipe}: {self.row}: the first stage ({first}) needs the teacher",
                hint="run the whole recipe with switchkd distill",
            )
        config = self.config.model_copy(update={"stages": self.config.stages[:count], "evaluation": None})
        if config == self.config:
            return self
        title = f"{self.title}, pre-trained"
        return replace(self, row=f"{self.row}.pretrain", title=title, config=config, paper={})

    def dumps(self) -> str:
        """The run as one line of text, for another process."""
        fields = {name: getattr(self, name) for name in ("recipe", "row", "title", "paper", "text")}
        return json.dumps(fields)

    @classmethod
    def loads(cls, line: str) -> Run:
        """The run that `dumps` wrote."""
        fields = json.loads(line)
        config = Recipe.model_validate(yaml_positions.read(fields.pop("text"), fields["recipe"]))
        return cls(config=config, **fields)

    def stage_key(self, index: int) -> str:
        """A digest of all that the output of stage `index` depends on; rows that differ later share it."""
        config = self.config
        stages = config.stages[: index + 1]
        teacher = config.teacher if any(stage.needs_teacher for stage in stages) else None
        used = sorted({stage.data for stage in stages})
        return digest(
            [_dump(config.student), _dump(teacher), self._models(config.student, teacher)],
            [{name: _dump(config.data[name]) for name in used}, self._data(used)],
            [_dump(stage, UNKEYED_OF_A_STAGE) for stage in stages],
            [config.seed, config.arithmetic],
        )

    @property
    def teacher_digest(self) -> str:
        """A digest of the teacher alone, and of what it is computed in."""
        config = self.config
        return digest(_dump(config.teacher), self._models(None, config.teacher), config.arithmetic)

    @property
    def teacher_key(self) -> str:
        """A digest of all that the teacher's scores and the baselines depend on."""
        config = self.config
        return digest(_dump(config.teacher), self._models(None, config.teacher), _dump(config.evaluation))

    def _models(self, student: Model | None, teacher: Model | None) -> dict[str, str | None]:
        named = [*named_in("student", student), *named_in("teacher", teacher)]
        return {field: self.fingerprints.model(name) for field, name in named}

    def _data(self, names: Iterable[str]) -> dict[str, str | None]:
        """Files that parameters name, and the images of their rows."""
        found = {}
        for name in names:
            spec = self.config.data[name]
            for parameter, value in spec.parameters.items():
                if isinstance(value, str) and isfile(value):
                    found[f"data.{name}.{parameter}"] = self.fingerprints.file(value)
            found[f"data.{name}.images"] = self.fingerprints.images(spec)
        return found


def named_in(who: str, model: Model | None) -> Iterator[tuple[str, str]]:
    """(field, name) of each model name that a model's description holds."""
    if model is None:
        return
    parts = ("vision", "language", "tokenizer", "image_processor")
    for part in ("checkpoint",) if isinstance(model, Checkpoint) else parts:
        if isinstance(name := getattr(model, part), str):
            yield f"{who}.{part}", name


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields of inputs that are not the same."""
    return [field for field in before | now if before.get(field) != now.get(field)]


def digest(*parts: Any) -> str:
    """A short hash of plain data."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dump(model: Any, but: Collection[str] = ()) -> Any:
    return None if model is None else model.model_dump(mode="json", exclude=set(but))
