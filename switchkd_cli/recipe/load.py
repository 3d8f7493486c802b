"""A recipe file -> runs: read, patch with the row, the world and the overrides, check everything, and freeze."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe import inherit, messages, yaml_positions
from switchkd_cli.recipe import overrides as patch
from switchkd_cli.recipe.fingerprint import Fingerprints
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
    """Read one row of a recipe (the first when none is named), laid in a world if one is named.

    Every row of the file is checked. Raises UserError with all problems at once.
    """
    opened = _Opened(path, world)
    return opened.runs([row or opened.rows[0]], overrides, seed)[0]


def load_with_controls(
    path: str | Path,
    row: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    world: str | None = None,
) -> tuple[Run, ...]:
    """The row and, after it, the recipe's control rows. An override must fit one of them at least."""
    opened = _Opened(path, world)
    first = row or opened.rows[0]
    controls = opened.data.get("controls")
    named = [name for name in controls if name in opened.rows] if isinstance(controls, list) else []
    return opened.runs([first, *(name for name in named if name != first)], overrides, seed)


def load_rows(
    path: str | Path,
    rows: Iterable[str] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    world: str | None = None,
    fingerprints: Fingerprints | None = None,
) -> tuple[Run, ...]:
    """The named rows, or all of them, in the order of the file. An override must fit one of them at least.

    Runs of several calls may share their `fingerprints`, so that what they all name is looked at once.
    """
    opened = _Opened(path, world, fingerprints)
    wanted = list(opened.rows if rows is None else rows)
    order = {name: i for i, name in enumerate(opened.rows)}
    return opened.runs(sorted(dict.fromkeys(wanted), key=lambda name: order.get(name, -1)), overrides, seed)


def row_names(path: str | Path) -> tuple[str, ...]:
    """The rows of a recipe, in the order of its file; nothing else of it is checked."""
    return _Opened(path, None).rows


class _Opened:
    """A recipe file as plain data, and the way from there to runs."""

    def __init__(self, path: str | Path, world: str | None, fingerprints: Fingerprints | None = None) -> None:
        self.fingerprints = fingerprints or Fingerprints()
        self.file = str(path)
        self.recipe = Path(path).stem
        self.world = World.read(world) if world is not None else None
        self.data, self.faults = data, _ = inherit.read(Path(path))
        rows = data.get("rows")
        self.rows: tuple[str, ...] = tuple(rows) if isinstance(rows, dict) and rows else (BASE,)

    def runs(self, wanted: Sequence[str], overrides: Sequence[str], seed: int | None) -> tuple[Run, ...]:
        problems = {_told(fault): None for fault in self.faults}  # in order, each once
        for name in wanted:
            if name not in self.rows:
                problems[f"{self.file}: row: unknown row, got {name!r}{did_you_mean(name, self.rows)}"] = None
        parsed = _parse(overrides, problems)
        misses: dict[str, list[str]] = {key: [] for key in parsed}
        found: dict[str, Recipe | None] = {}
        for name in self.rows:
            data = self._patched(name, problems)
            if name in wanted:
                data = _overridden(data, parsed, misses, seed)
            found[name] = self._validated(data, problems)
        asked = [name for name in wanted if name in self.rows]
        for key, missed in misses.items():
            if asked and len(missed) == len(asked):
                problems[f"override: {key}: {missed[0]}"] = None
        if problems:
            raise UserError(sorted(problems, key=_place))
        return tuple(self._run(name, found[name]) for name in wanted)

    def _patched(self, name: str, problems: dict[str, None]) -> Any:
        """The data with a row's `drop` and `set` applied as far as they can be, in its world."""
        data: Any = self.data
        rows = data.get("rows")
        row = rows.get(name) if isinstance(rows, dict) else None
        if isinstance(row, dict):
            data, faults = inherit.patched_by(self.data, data, ("rows", name))
            problems.update({_told(fault): None for fault in faults})
        return self._laid(data, problems)

    def _laid(self, data: Any, problems: dict[str, None]) -> Any:
        """The data in the world that was asked for."""
        if self.world is None:
            return data
        laid_data, laid = self.world.lay(data)
        for path, message in laid.problems:
            self._note(problems, path, message, data)
        return laid_data

    def _validated(self, data: Any, problems: dict[str, None]) -> Recipe | None:
        recipe = None
        try:
            recipe = Recipe.model_validate(data)
        except ValidationError as error:
            for path, message in messages.problems(error):
                self._note(problems, path, message, data)
        for path, message in check(data):
            self._note(problems, path, message, data)
        return recipe

    def _note(
        self, problems: dict[str, None], path: Sequence[yaml_positions.Step], message: str, data: Any = None
    ) -> None:
        data = self.data if data is None else data
        problems[f"{yaml_positions.where(data, path) or self.file}: {_dotted(data, path)}: {message}"] = None

    def _run(self, name: str, recipe: Recipe | None) -> Run:
        assert recipe is not None  # else there were problems
        row = recipe.rows.get(name)
        config = recipe.model_copy(update={"rows": {}, "controls": ()})
        title = (row.title or name) if row else recipe.title
        recipe_name = f"{self.recipe}@{config.world}" if config.world else self.recipe
        return Run(recipe_name, name, title, config, row.paper if row else {}, self.fingerprints)


def _told(fault: inherit.Problem) -> str:
    place, path, message = fault
    return f"{place}: {path}: {message}"


def _parse(overrides: Sequence[str], problems: dict[str, None]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problems[f"override: {text}: must be key=value, such as stages.distill.lr=1e-4"] = None
        elif key.split(".")[0] in ("rows", "controls"):
            problems[f"override: {key}: rows are chosen with --row, or changed in the file"] = None
        else:
            try:
                parsed[key] = yaml_positions.value(value)
            except UserError:
                problems[f"override: {key}: not readable as YAML, got {value!r}"] = None
    return parsed


def _overridden(data: Any, parsed: dict[str, Any], misses: dict[str, list[str]], seed: int | None) -> Any:
    """Apply what fits; a term that this row drops may be meant for another row."""
    for key, value in parsed.items():
        try:
            data = patch.apply(data, {key: value})
        except patch.PatchError as error:
            misses[key].append(str(error))
    return data if seed is None else patch.apply(data, {"seed": seed}, place="--seed")


def _dotted(data: Any, path: Sequence[yaml_positions.Step]) -> str:
    """The path as the patch language writes it: list items by name where they have one."""
    words = []
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            data = None
        words.append((patch.item_name(data) if isinstance(step, int) else None) or str(step))
    return ".".join(words) or "recipe"


def _place(problem: str) -> tuple[str, int]:
    """The file and line a problem is in; what has none comes first."""
    match = re.match(r"(.*?):(\d+): ", problem)
    return (match[1], int(match[2])) if match else ("", 0)
