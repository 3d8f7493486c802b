"""Load recipe files as runs: read, patch with a row, a world and overrides, check everything, and freeze."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from switchkd_cli.errors import UserError, did_you_mean, for_each
from switchkd_cli.recipe import patches, yaml_positions
from switchkd_cli.recipe.named_files import find
from switchkd_cli.recipe.problems import fitted
from switchkd_cli.recipe.run import Fingerprints, Run
from switchkd_cli.recipe.schema import Recipe
from switchkd_cli.recipe.stand_ins import World
from switchkd_cli.recipe.validate import check
from switchkd_cli.recipe.yaml_positions import line, listed, mapping

BASE = "base"  # the only row of a recipe that names no rows


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
        first = recipe.runs(wanted, overrides, seed)
        others = [recipe.runs(wanted, overrides, first[0].seed + i) for i in range(1, seeds)]
        return tuple(run for row in zip(first, *others, strict=True) for run in row)

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
        misfits: list[dict[str, str]] = []
        for name in self.rows:
            data, found = patches.patch(self.data, self.data, ("rows", name))
            if self.world is not None:
                data, missing = self.world.replace(data)
                found += missing
            if name in wanted:
                data, misfit = patches.apply(data, values)  # a term that this row drops may be meant for another row
                misfits.append(misfit)
                data = data if seed is None else patches.apply(data, {"seed": seed}, place="--seed")[0]
            recipes[name], unfit = fitted(Recipe, data)
            problems += [*found, *(line(data, path, told, self.file) for path, told in (*unfit, *check(data)))]
        for key in values:
            if misfits and all(key in misfit for misfit in misfits):
                problems.append(f"override: {key}: {misfits[0][key]}")
        if problems:
            raise UserError(sorted(dict.fromkeys(problems), key=_file_and_line))
        return tuple(self._run(name, recipes[name]) for name in wanted)

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
        elif key.split(".")[0] in ("rows", "controls"):
            problems.append(f"override: {key}: rows are chosen with --row, or changed in the file")
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
