"""One run as data, and the keys under which its outputs are found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import isfile
from typing import Any

from switchkd_cli.errors import UserError
from switchkd_cli.recipe import source
from switchkd_cli.recipe.fingerprint import fingerprint
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
FORMAT = 1  # part of every key: raise it when the same recipe no longer means the same weights


@dataclass(frozen=True)
class Run:
    """One row of a recipe with one seed: everything a training process needs to know."""

    recipe: str
    row: str
    title: str
    config: Recipe
    paper: Mapping[str, float]

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
        return source.write(self.config.model_dump(mode="json", exclude={"rows", "controls"}))

    @cached_property
    def key(self) -> str:
        """A digest of all that the run's results depend on (titles do not count, changed checkpoints do)."""
        config = self.config
        models = [_model_fingerprints(model) for model in (config.student, config.teacher)]
        data = [_data_fingerprints(config, name) for name in config.data]
        said = config.model_dump(mode="json", exclude=UNKEYED) | {"precision": config.arithmetic}
        said["stages"] = [_dump(stage, UNKEYED_OF_A_STAGE) for stage in config.stages]
        return digest(said, models, data)

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
        config = Recipe.model_validate(source.read(fields.pop("text"), fields["recipe"]))
        return cls(config=config, **fields)

    def stage_key(self, index: int) -> str:
        """A digest of all that the output of stage `index` depends on; rows that differ later share it."""
        config = self.config
        stages = config.stages[: index + 1]
        teacher = config.teacher if any(stage.needs_teacher for stage in stages) else None
        used = sorted({stage.data for stage in stages})
        return digest(
            [_dump(config.student), _model_fingerprints(config.student)],
            [_dump(teacher), _model_fingerprints(teacher)],
            {name: [_dump(config.data[name]), _data_fingerprints(config, name)] for name in used},
            [_dump(stage, UNKEYED_OF_A_STAGE) for stage in stages],
            [config.seed, config.arithmetic],
        )

    @property
    def teacher_digest(self) -> str:
        """A digest of the teacher alone, and of what it is computed in."""
        config = self.config
        return digest(_dump(config.teacher), _model_fingerprints(config.teacher), config.arithmetic)

    @property
    def teacher_key(self) -> str:
        """A digest of all that the teacher's scores and the baselines depend on."""
        config = self.config
        return digest(_dump(config.teacher), _model_fingerprints(config.teacher), _dump(config.evaluation))


def digest(*parts: Any) -> str:
    """A short hash of plain data."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dump(model: Any, but: Collection[str] = ()) -> Any:
    return None if model is None else model.model_dump(mode="json", exclude=set(but))


def _model_fingerprints(model: Model | None) -> list[str | None]:
    if model is None:
        return []
    whole = isinstance(model, Checkpoint)
    names = [model.checkpoint] if whole else [model.vision, model.language, model.tokenizer]
    return [fingerprint(name) if isinstance(name, str) else None for name in names]


def _data_fingerprints(config: Recipe, name: str) -> list[str | None]:
    values = config.data[name].parameters.values()
    return [fingerprint(value) for value in values if isinstance(value, str) and isfile(value)]
