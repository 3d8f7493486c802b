"""Load recipe files as runs: read, patch with a row, a world and overrides, check everything, and freeze.

A world replaces a recipe's models and data by stand-ins, so that its rows run where neither can be had. It is a file,
`recipes/worlds/NAME.yaml`, and is applied after a row's patches: it replaces the names of models and data sets and sets the
pace of stages; the objective and the structure of the stages stay the row's. A learning rate and a batch are multiplied by a
factor, and an epoch becomes a number of steps: a row that doubles one doubles it here too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Self, TypeVar

from switchkd_cli.errors import UserError, did_you_mean, for_each
from switchkd_cli.recipe import patches, yaml_positions
from switchkd_cli.recipe.named_files import find, yaml_files
from switchkd_cli.recipe.problems import fitted
from switchkd_cli.recipe.run import Fingerprints, Run
from switchkd_cli.recipe.schema import Count, DataSet, Positive, Recipe, Stage, Strict, Text
from switchkd_cli.recipe.validate import check
from switchkd_cli.recipe.yaml_positions import at, line, listed, mapping

NAMED = ("checkpoint", "vision", "language", "frozen_projector")  # the fields of a model that name one
BASE = "base"  # the only row of a recipe that names no rows

T = TypeVar("T")


def load(path: str | Path, row: str | None = None, *changes: Any, **named: Any) -> Run:
    """Return one row of a recipe as a run: the first if none is named. The `changes` are those of `load_rows`.

    Every row of the file is checked. Raises UserError with all problems at once.
    """
    return load_rows(path, [row], *changes, **named)[0]


def load_rows(
    path: str | Path,
    rows: Iterable[str | None] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    world: str | None = None,
    *,
    controls: bool = False,
) -> tuple[Run, ...]:
    """Return the named rows (None: the first one), or all, in the order of the file; then the recipe's `controls`, if asked.

    An override must fit at least one of them.
    """
    return RecipeFile(path, world).runs(rows, overrides, seed, controls=controls)


def load_many(
    names: Sequence[str],
    rows: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    seed: int | None = None,
    world: str | None = None,
) -> dict[Path, tuple[Run, ...]]:
    """Load recipes by name or file: of each recipe those of the named rows that it has, or all its rows.

    Returns the runs of each file, row after row, each with its seeds.

    Raises UserError with the problems of all recipes, also for a row that no recipe has, for a recipe that has none of the
    rows, and for recipes of one name.
    """
    fingerprints = Fingerprints()  # a checkpoint or data set that several recipes name is read once
    recipes = for_each(names, lambda name: RecipeFile(find(name), world, fingerprints))
    files = {recipe.name: [r.file for r in recipes if r.name == recipe.name] for recipe in recipes}
    if repeated := [f"{name}: {', '.join(same)}: recipes of one name" for name, same in files.items() if len(same) > 1]:
        raise UserError(repeated, hint="name each recipe once; runs of one name would go to one folder")
    every = {row for recipe in recipes for row in recipe.rows}

    def runs(recipe: RecipeFile) -> tuple[Run, ...]:
        wanted = None if rows is None else [row for row in rows if row in recipe.rows or row not in every]
        if wanted == []:
            problem = f"{recipe.file}: has none of the rows {', '.join(rows or ())} (known: {', '.join(recipe.rows)})"
            raise UserError(problem, hint="leave out the recipe, or --rows for all rows")
        return tuple(run.with_seed(run.seed + i) for run in recipe.runs(wanted, overrides, seed) for i in range(seeds))

    return dict(zip([Path(recipe.file) for recipe in recipes], for_each(recipes, runs), strict=True))


class RecipeFile:
    """A recipe file as plain data, and the way from there to runs."""

    def __init__(self, path: str | Path, world: str | None = None, fingerprints: Fingerprints | None = None) -> None:
        self.fingerprints = fingerprints or Fingerprints()
        self.file = str(path)
        self.name = Path(path).stem
        self.world = World.read(world) if world is not None else None
        self.data, self.problems = patches.read(Path(path))
        self.rows: tuple[str, ...] = tuple(mapping(self.data.get("rows"))) or (BASE,)

    def runs(
        self, rows: Iterable[str | None] | None, overrides: Sequence[str], seed: int | None, *, controls: bool = False
    ) -> tuple[Run, ...]:
        """See `load_rows`. Raises UserError with every problem of the file and of the arguments."""
        names = dict.fromkeys(name or self.rows[0] for name in (self.rows if rows is None else rows))
        unknown = [name for name in names if name not in self.rows]
        problems = [f"{self.file}: row: unknown row, got {name!r}{did_you_mean(name, self.rows)}" for name in unknown]
        wanted = [name for name in self.rows if name in names]
        if controls:
            known = [name for name in listed(self.data.get("controls")) if name in self.rows]
            wanted = list(dict.fromkeys([*wanted, *known]))
        values, wrong = _parsed(overrides)
        problems += [*wrong, *self.problems]
        recipes: dict[str, Any] = {}
        lines: dict[str, list[str]] = {}  # each problem of values, and the rows that have it
        misfits: list[dict[str, str]] = []
        for name in self.rows:
            data, found = patches.patch(self.data, self.data, ("rows", name))
            for world in mapping(at(self.data, "rows", name, "worlds")):
                there, unfit_there = self._in_world(data, name, world)
                found += unfit_there
                data = there if self.world and self.world.name == world else data
            if self.world is not None:
                data, missing = self.world.replace(data)
                found += missing
            if name in wanted:
                data, misfit = patches.apply(data, values)  # a term that this row drops may be meant for another row
                misfits.append(misfit)
                data = data if seed is None else patches.apply(data, {"seed": seed}, place="--seed")[0]
            recipes[name], unfit = fitted(Recipe, data)
            problems += found
            for path, told in (*unfit, *check(data, unfit)):
                lines.setdefault(line(data, path, told, self.file), []).append(name)
        for key in values:
            if misfits and all(key in misfit for misfit in misfits):
                problems.append(f"override: {key}: {misfits[0][key]}")
        for text, of in lines.items():
            here = _file_and_line(text)[0] in ("", self.file) or len(of) == len(self.rows)
            # a patch of these rows makes an inherited line wrong
            problems.append(text if here else f"{text} (row {', '.join(of)})")
        if problems:
            raise UserError(sorted(dict.fromkeys(problems), key=_file_and_line))
        return tuple(self._run(name, recipes[name]) for name in wanted)

    def _in_world(self, data: Any, row: str, world: str) -> tuple[Any, list[str]]:
        """Return a row's data with what it sets in this world, and a line for each problem: checked with every world."""
        place = ("rows", row, "worlds", world)
        data, found = patches.set_from(self.data, data, place)
        if world not in (known := yaml_files("worlds")):
            found.append(line(self.data, place, f"unknown world, got {world!r}{did_you_mean(world, known)}"))
        return data, found

    def _run(self, name: str, recipe: Recipe) -> Run:
        row = recipe.rows.get(name)
        config = recipe.model_copy(update={"rows": {}, "controls": ()})
        title = (row.title or name) if row else recipe.title
        recipe_name = f"{self.name}@{config.world}" if config.world else self.name
        return Run(recipe_name, name, title, config, row.paper if row else {}, self.fingerprints)


def _parsed(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of `key=value` overrides by key, and what is wrong with the others."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problems.append(f"override: {text}: must be key=value, such as stages.distill.lr=1e-4")
        elif chosen := patches.CHOSEN.get(key.split(".")[0]):
            problems.append(f"override: {key}: {chosen}")
        else:
            try:
                values[key] = yaml_positions.value(value)
            except UserError:
                problems.append(f"override: {key}: not readable as YAML, got {value!r}")
    return values, problems


def _file_and_line(problem: str) -> tuple[str, int]:
    """Return the file and line that a problem names; problems without a line come first."""
    match = re.match(r"(.*?):(\d+): ", problem)
    return (match[1], int(match[2])) if match else ("", 0)


class Pace(Strict):
    """The pace of a stage on a stand-in data set: factors of its learning rate and batch, and the steps of an epoch."""

    lr: Positive
    batch: Positive
    epoch: Count

    def of(self, stage: Stage) -> dict[str, Any]:
        """Return the fields of a stage that this pace changes; broken ones stay."""
        fields: dict[str, Any] = {}
        if stage.lr:
            fields["lr"] = float(f"{stage.lr * self.lr:.6g}")
        if stage.batch:
            fields["batch"] = max(1, round(stage.batch * self.batch))
        if stage.epochs and not stage.steps:
            fields["steps"] = max(1, round(stage.epochs * self.epoch))
        return fields


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
        data = yaml_positions.read(patches.text_of(files[name]), file)
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

        recipe = Recipe.as_far_as_it_fits(data)
        for (model, parts_of), key in product(recipe.models.items(), NAMED):
            name = getattr(parts_of, key, None)
            if not isinstance(name, str) or not name or name.startswith(f"{self.name}:"):
                continue
            if stand_in := find(name, self.models, *model.split("."), key):
                values[f"{model}.{key}"] = stand_ins[name] = stand_in
                parts = self.fields.parts if key != "checkpoint" else {}
                values |= {f"{model}.{part}": value for part, value in parts.items()}
        for name, spec in recipe.data.items():
            if spec.source != self.name and (data_set := find(name, self.data, "data", name)):
                values[f"data.{name}"] = data_set.model_dump(exclude={"pace"}, exclude_defaults=True)
                parameters = ", ".join(f"{key} {value}" for key, value in data_set.parameters.items())
                stand_ins[name] = f"{data_set.source}: {parameters}"
                for i, stage in enumerate(recipe.stages):
                    if stage.trained_on[:1] == (name,):
                        changed = data_set.pace.of(stage) | self.fields.stage
                        kept = {"micro_batch"} if stage.ranks_examples else set()  # among which examples, says the row
                        values |= {f"stages.{i}.{key}": changed[key] for key in changed.keys() - kept}
        if stand_ins:
            if at(data, "evaluation") is not None:
                values |= {f"evaluation.{key}": value for key, value in self.fields.evaluation.items()}
            values |= {**self.fields.recipe, "world": self.name, "stand_ins": stand_ins}
        return patches.apply(data, values, place=self.file)[0], missing
