"""Load a recipe file as runs: read it, patch it with a row, a world and overrides, check everything, and freeze it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe import inherit, yaml_positions
from switchkd_cli.recipe import overrides as patches
from switchkd_cli.recipe.fingerprint import Fingerprints
from switchkd_cli.recipe.problems import line, schema_problems
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Recipe
from switchkd_cli.recipe.stand_ins import World
from switchkd_cli.recipe.validate import check

BASE = "base"  # the only row of a recipe that names no rows


def load(
    path: str | Path,
    row: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    world: str | None = None,
) -> Run:
    """Return one row of a recipe as a run (the first row if none is named), in a world if one is named.

    Every row of the file is checked. Raises UserError with all problems at once.
    """
    recipe = _RecipeFile(path, world)
    return recipe.runs([row or recipe.rows[0]], overrides, seed)[0]


def load_with_controls(
    path: str | Path,
    row: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    world: str | None = None,
) -> tuple[Run, ...]:
    """Return a row and, after it, the recipe's control rows. An override must fit at least one of them."""
    recipe = _RecipeFile(path, world)
    controls = recipe.data.get("controls")
    known = [name for name in controls if name in recipe.rows] if isinstance(controls, list) else []
    return recipe.runs(list(dict.fromkeys([row or recipe.rows[0], *known])), overrides, seed)


def load_rows(
    path: str | Path,
    rows: Iterable[str] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    world: str | None = None,
    fingerprints: Fingerprints | None = None,
) -> tuple[Run, ...]:
    """Return the named rows, or all, in the order of the file. An override must fit at least one of them.

    Several calls may share their `fingerprints`, so that a checkpoint or data set that they all name is read once.
    """
    recipe = _RecipeFile(path, world, fingerprints)
    order = {name: i for i, name in enumerate(recipe.rows)}
    names = dict.fromkeys(order if rows is None else rows)
    return recipe.runs(sorted(names, key=lambda name: order.get(name, -1)), overrides, seed)


def row_names(path: str | Path) -> tuple[str, ...]:
    """Return the names of a recipe's rows, in the order of its file; nothing else is checked."""
    return _RecipeFile(path, None).rows


class _RecipeFile:
    """A recipe file as plain data, and the way from there to runs."""

    def __init__(self, path: str | Path, world: str | None, fingerprints: Fingerprints | None = None) -> None:
        self.fingerprints = fingerprints or Fingerprints()
        self.file = str(path)
        self.name = Path(path).stem
        self.world = World.read(world) if world is not None else None
        self.data, self.problems = inherit.read(Path(path))
        rows = self.data.get("rows")
        self.rows: tuple[str, ...] = tuple(rows) if isinstance(rows, dict) and rows else (BASE,)

    def runs(self, names: Sequence[str], overrides: Sequence[str], seed: int | None) -> tuple[Run, ...]:
        """Return the named rows as runs. Raises UserError with every problem of the file and of the arguments."""
        known = [name for name in names if name in self.rows]
        problems = [*self.problems]
        problems += [
            f"{self.file}: row: unknown row, got {name!r}{did_you_mean(name, self.rows)}"
            for name in names
            if name not in self.rows
        ]
        values = _parsed(overrides, problems)
        misfits: dict[str, list[str]] = {key: [] for key in values}
        recipes: dict[str, Recipe] = {}
        for name in self.rows:
            data = self._patched(name, problems)
            if name in names:
                data = _overridden(data, values, misfits, seed)
            try:
                recipes[name] = Recipe.model_validate(data)
                found = []
            except ValidationError as error:
                found = list(schema_problems(error))
            problems += [line(data, path, message, self.file) for path, message in [*found, *check(data)]]
        problems += [
            f"override: {key}: {missed[0]}" for key, missed in misfits.items() if known and len(missed) == len(known)
        ]
        if problems:
            raise UserError(sorted(dict.fromkeys(problems), key=_file_and_line))
        return tuple(self._run(name, recipes[name]) for name in names)

    def _patched(self, name: str, problems: list[str]) -> Any:
        """Return the data of one row, its `drop` and `set` applied as far as they can be, in the chosen world."""
        data: Any = self.data
        rows = data.get("rows")
        if isinstance(rows, dict) and isinstance(rows.get(name), dict):
            data, found = inherit.patch(self.data, data, ("rows", name))
            problems += found
        if self.world is None:
            return data
        replaced, missing = self.world.replace(data)
        problems += [line(data, path, message, self.file) for path, message in missing]
        return replaced

    def _run(self, name: str, recipe: Recipe) -> Run:
        row = recipe.rows.get(name)
        config = recipe.model_copy(update={"rows": {}, "controls": ()})
        title = (row.title or name) if row else recipe.title
        recipe_name = f"{self.name}@{config.world}" if config.world else self.name
        return Run(recipe_name, name, title, config, row.paper if row else {}, self.fingerprints)


def _parsed(overrides: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """Return the values of `key=value` overrides by key, and add what is wrong with the others to `problems`."""
    values: dict[str, Any] = {}
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
    return values


def _overridden(data: Any, values: dict[str, Any], misfits: dict[str, list[str]], seed: int | None) -> Any:
    """Return the data with the overrides that fit it; a term that this row drops may be meant for another row."""
    for key, value in values.items():
        try:
            data = patches.apply(data, {key: value})
        except patches.PatchError as error:
            misfits[key].append(str(error))
    return data if seed is None else patches.apply(data, {"seed": seed}, place="--seed")


def _file_and_line(problem: str) -> tuple[str, int]:
    """Return the file and line that a problem names; problems without a line come first."""
    match = re.match(r"(.*?):(\d+): ", problem)
    return (match[1], int(match[2])) if match else ("", 0)
