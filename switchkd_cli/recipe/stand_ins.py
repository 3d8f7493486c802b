"""Replace a recipe's models and data by a world's stand-ins, so that its rows run where neither can be had.

A world is a file, `recipes/worlds/NAME.yaml`. It is applied after a row's patches: it replaces the names of models and data
sets and sets the pace of stages; the objective and the structure of the stages stay the row's. A learning rate and a batch
are multiplied by a factor, and an epoch becomes a number of steps: a row that doubles one doubles it here too.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, Self, TypeGuard, TypeVar

from pydantic import Field

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe import patches, yaml_positions
from switchkd_cli.recipe.named_files import yaml_files
from switchkd_cli.recipe.problems import fitted
from switchkd_cli.recipe.schema import Count, DataSet, Part, Positive, Strict, Text
from switchkd_cli.recipe.yaml_positions import at, line, mapping, mappings, trained_on

T = TypeVar("T")

NAMED = ("checkpoint", "vision", "language")  # the fields of a model that name one


class Pace(Strict):
    """The pace of a stage on a stand-in data set: factors of its learning rate and batch, and the steps of an epoch.

    `lr_scale` holds further factors for the parts that the stage trains.
    """

    lr: Positive
    lr_scale: dict[Part, Positive] = Field(default_factory=dict)
    batch: Positive
    epoch: Count


class StandInData(DataSet):
    """A data set, and the pace of the stages that read it, of a mixture first."""

    pace: Pace


class StandInFields(Strict):
    """Fields that are set along with a stand-in: in a model made of parts, a stage, the evaluation, and the recipe."""

    parts: dict[str, Any]
    stage: dict[str, Any]
    evaluation: dict[str, Any]
    recipe: dict[str, Any]


class World(Strict):
    """A world: its name, the file that it was read from, and the stand-in of each model and each data set."""

    name: str = ""
    file: str = ""
    models: dict[Text, Text]
    data: dict[str, StandInData]
    fields: StandInFields

    @classmethod
    def read(cls, name: str) -> Self:
        """Raises UserError for an unknown world, or with every problem of its file."""
        files = yaml_files("worlds")
        if name not in files:
            raise UserError(f"--world: unknown world, got {name!r}{did_you_mean(name, files)}")
        file = str(files[name])
        data = yaml_positions.read(Path(file).read_text(encoding="utf-8"), file)
        world, wrong = fitted(cls, data)
        if world is None:
            raise UserError([line(data, path, message, file) for path, message in wrong])
        return world.model_copy(update={"name": name, "file": file})

    def replace(self, data: Any) -> tuple[Any, list[str]]:
        """Return a row's data with this world's stand-ins, and a line for each name that has none.

        Models and data that already are the world's own stay, and so do broken fields.
        """
        values: dict[str, Any] = {}  # by dotted path
        stand_ins: dict[str, str] = {}  # by the name that is replaced
        missing: list[str] = []

        def find(name: str, known: Mapping[str, T], *path: str) -> T | None:
            if name not in known:
                problem = f"nothing stands in for it in {self.file}, got {name!r}{did_you_mean(name, known)}"
                missing.append(line(data, path, problem))
            return known.get(name)

        for model, key in product(("student", "teacher"), NAMED):
            name = at(data, model, key)
            if not isinstance(name, str) or name.startswith(f"{self.name}:"):
                continue
            if stand_in := find(name, self.models, model, key):
                values[f"{model}.{key}"] = stand_ins[name] = stand_in
                parts = self.fields.parts if key != "checkpoint" else {}
                values |= {f"{model}.{part}": value for part, value in parts.items()}
        for name, spec in mapping(at(data, "data")).items():
            if at(spec, "source") != self.name and (data_set := find(name, self.data, "data", name)):
                values[f"data.{name}"] = data_set.model_dump(exclude={"pace"}, exclude_defaults=True)
                parameters = ", ".join(f"{key} {value}" for key, value in data_set.parameters.items())
                stand_ins[name] = f"{data_set.source}: {parameters}"
                for i, stage in mappings(at(data, "stages")):
                    if [used for _, used in trained_on(stage)][:1] == [name]:
                        changed = _paced(stage, data_set.pace) | self.fields.stage
                        values |= {f"stages.{i}.{key}": value for key, value in changed.items()}
        if stand_ins:
            if at(data, "evaluation") is not None:
                values |= {f"evaluation.{key}": value for key, value in self.fields.evaluation.items()}
            values |= {**self.fields.recipe, "world": self.name, "stand_ins": stand_ins}
        return patches.apply(data, values, place=self.file)[0], missing


def _paced(stage: Mapping[str, Any], pace: Pace) -> dict[str, Any]:
    """Return the fields of a stage that its pace changes."""
    lr, batch, epochs = (stage.get(key) for key in ("lr", "batch", "epochs"))
    fields: dict[str, Any] = {}
    if _is_number(lr):
        fields["lr"] = float(f"{lr * pace.lr:.6g}")
    if _is_number(batch):
        fields["batch"] = max(1, round(batch * pace.batch))
    if _is_number(epochs):
        fields["steps"] = max(1, round(epochs * pace.epoch))
    scale, train = stage.get("lr_scale", {}), stage.get("train")
    if isinstance(scale, Mapping) and isinstance(train, list) and all(map(_is_number, scale.values())):
        factors = {part: scale.get(part, 1.0) * by for part, by in pace.lr_scale.items() if part in train}
        fields |= {"lr_scale": {**scale, **factors}} if factors else {}
    return fields


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float)
