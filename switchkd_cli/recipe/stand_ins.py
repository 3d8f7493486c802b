"""A world: what stands in for a recipe's models and data, so that the same rows run where neither can be had.

A world is a file, `recipes/worlds/NAME.yaml`. It is laid on after a row's patches: it replaces names (models, data
sets) and paces stages, and leaves the objective and the stages' structure as the row has them. A learning rate and
a batch become so many times what the row says, an epoch so many steps: a row that doubles one doubles it here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe import messages, overrides, yaml_positions
from switchkd_cli.recipe.find import worlds
from switchkd_cli.recipe.schema import Closed, Count, DataSet, Part, Positive, Text

NAMED = ("checkpoint", "vision", "language")  # the fields of a model that say which one


class Pace(Closed):
    """How a stage goes on a stand-in data set: factors of its learning rate and batch, and steps for an epoch.

    `lr_scale` holds further factors for parts, where a stage trains them.
    """

    lr: Positive
    lr_scale: dict[Part, Positive] = Field(default_factory=dict)
    batch: Positive
    epoch: Count


class StandIn(DataSet):
    """A data set, and the pace of the stages that read it."""

    pace: Pace


class Fields(Closed):
    """What is set beside a stand-in: in a model built of parts, a stage, the evaluation, and the recipe itself."""

    parts: dict[str, Any]
    stage: dict[str, Any]
    evaluation: dict[str, Any]
    recipe: dict[str, Any]


class StandIns(Closed):
    """What stands in for which model and which data set, and what else changes with them."""

    models: dict[Text, Text]
    data: dict[str, StandIn]
    fields: Fields


@dataclass
class Laid:
    """What a world does to one row: values by dotted path, what stands in for what, and what it has nothing for."""

    values: dict[str, Any] = field(default_factory=dict)
    stand_ins: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[tuple[yaml_positions.Step, ...], str]] = field(default_factory=list)


@dataclass(frozen=True)
class World:
    """A world, its name, and the file that it was read from."""

    name: str
    file: str
    given: StandIns

    @classmethod
    def read(cls, name: str) -> World:
        """Raises UserError for a world that there is not, or with every problem of its file."""
        files = worlds()
        if name not in files:
            raise UserError(f"--world: unknown world, got {name!r}{did_you_mean(name, files)}")
        file = str(files[name])
        data = yaml_positions.read(Path(file).read_text(encoding="utf-8"), file)
        try:
            return cls(name, file, StandIns.model_validate(data))
        except ValidationError as error:
            problems = [
                f"{yaml_positions.where(data, path) or file}: {'.'.join(map(str, path))}: {message}"
                for path, message in messages.problems(error, StandIns)
            ]
            raise UserError(problems) from None

    def lay(self, data: Any) -> tuple[Any, Laid]:
        """A row's plain data in this world. What is of the world already stays; broken fields are left alone."""
        laid = Laid()
        for who in ("student", "teacher"):
            self._model(who, _mapping(_mapping(data).get(who)), laid)
        stages = _mapping(data).get("stages")
        for name, spec in _mapping(_mapping(data).get("data")).items():
            self._data_set(name, _mapping(spec), stages if isinstance(stages, list) else [], laid)
        if laid.stand_ins:
            fields = self.given.fields
            if isinstance(data.get("evaluation"), Mapping):
                laid.values |= {f"evaluation.{key}": value for key, value in fields.evaluation.items()}
            laid.values |= {**fields.recipe, "world": self.name, "stand_ins": laid.stand_ins}
        return overrides.apply(data, laid.values, place=self.file), laid

    def _model(self, who: str, spec: Mapping[str, Any], laid: Laid) -> None:
        for key in NAMED:
            given = spec.get(key)
            if not isinstance(given, str) or given.startswith(f"{self.name}:"):
                continue
            if given not in self.given.models:
                laid.problems.append(((who, key), self._nothing_for(given, self.given.models)))
                continue
            laid.values[f"{who}.{key}"] = laid.stand_ins[given] = self.given.models[given]
            if key != "checkpoint":
                laid.values |= {f"{who}.{key}": value for key, value in self.given.fields.parts.items()}

    def _data_set(self, name: str, spec: Mapping[str, Any], stages: list[Any], laid: Laid) -> None:
        if spec.get("source") == self.name:
            return
        if name not in self.given.data:
            laid.problems.append((("data", name), self._nothing_for(name, self.given.data)))
            return
        stand_in = self.given.data[name]
        laid.values[f"data.{name}"] = stand_in.model_dump(exclude={"pace"}, exclude_defaults=True)
        told = ", ".join(f"{key} {value}" for key, value in stand_in.parameters.items())
        laid.stand_ins[name] = f"{stand_in.source}: {told}"
        for i, stage in enumerate(stages):
            if _mapping(stage).get("data") == name:
                paced = _paced(stage, stand_in.pace) | self.given.fields.stage
                laid.values |= {f"stages.{i}.{key}": value for key, value in paced.items()}

    def _nothing_for(self, name: str, known: Mapping[str, Any]) -> str:
        return f"nothing stands in for it in {self.file}, got {name!r}{did_you_mean(name, known)}"


def _paced(stage: Mapping[str, Any], pace: Pace) -> dict[str, Any]:
    """The stage's fields that go at another pace."""
    scaled: dict[str, tuple[str, Callable[[float], float]]] = {
        "lr": ("lr", lambda lr: float(f"{lr * pace.lr:.6g}")),
        "batch": ("batch", lambda rows: max(1, round(rows * pace.batch))),
        "epochs": ("steps", lambda epochs: max(1, round(epochs * pace.epoch))),
    }
    paced: dict[str, Any] = {
        scaled[key][0]: scaled[key][1](stage[key]) for key in scaled if _is_number(stage.get(key))
    }
    own, train = stage.get("lr_scale", {}), stage.get("train")
    if isinstance(own, Mapping) and isinstance(train, list) and all(map(_is_number, own.values())):
        parts = {part: own.get(part, 1.0) * by for part, by in pace.lr_scale.items() if part in train}
        paced |= {"lr_scale": {**own, **parts}} if parts else {}
    return paced


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
