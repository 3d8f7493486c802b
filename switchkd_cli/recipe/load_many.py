"""Load several recipes at once: the rows that are wanted of each, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.find import find
from switchkd_cli.recipe.fingerprint import Fingerprints
from switchkd_cli.recipe.load import load_rows, row_names
from switchkd_cli.recipe.run import Run

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the runs that are wanted of it, row after row, each with its seeds."""

    file: Path
    runs: tuple[Run, ...]

    @property
    def first(self) -> list[Run]:
        """The runs of the first seed."""
        return [run for run in self.runs if run.seed == self.runs[0].seed]


def load_many(
    names: Sequence[str],
    rows: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    seed: int | None = None,
    world: str | None = None,
) -> list[LoadedRecipe]:
    """Load recipes by name or file: of each recipe those of the named rows that it has, or all its rows.

    Raises UserError with the problems of all recipes, also for a row that no recipe has, for a recipe that has none of the
    rows, and for two recipes of one name.
    """
    files = _for_each(names, find)
    _require_different_names(files)
    wanted = _rows_of_each(files, rows)
    fingerprints = Fingerprints()

    def runs(file: Path) -> LoadedRecipe:
        def of_seed(number: int | None) -> tuple[Run, ...]:
            return load_rows(file, wanted[file], overrides, number, world, fingerprints)

        first = of_seed(seed)
        others = [of_seed(first[0].seed + i) for i in range(1, seeds)]
        return LoadedRecipe(file, tuple(run for row in zip(first, *others, strict=True) for run in row))

    return _for_each(files, runs)


def _rows_of_each(files: Sequence[Path], rows: Sequence[str] | None) -> dict[Path, Sequence[str] | None]:
    """Return the rows to load of each recipe. With a single recipe, loading it reports unknown rows."""
    if rows is None or len(files) == 1:
        return dict.fromkeys(files, rows)
    known = dict(zip(files, _for_each(files, row_names), strict=True))
    every = list(dict.fromkeys(name for names in known.values() for name in names))
    problems = [
        f"--rows: no such row in any of the recipes, got {row!r}{did_you_mean(row, every)}"
        for row in rows
        if row not in every
    ]
    wanted: dict[Path, Sequence[str] | None] = {
        file: [row for row in rows if row in names] for file, names in known.items()
    }
    problems = problems or [
        f"{file}: has none of the rows {', '.join(rows)} (known: {', '.join(known[file])})"
        for file in files
        if not wanted[file]
    ]
    if problems:
        raise UserError(problems, hint="leave out the recipe, or --rows for all rows")
    return wanted


def _require_different_names(files: Sequence[Path]) -> None:
    """Raise UserError where two recipes have one name: their runs would go to one folder."""
    first: dict[str, Path] = {}
    problems = [
        f"{file}: named twice" if first[file.stem] == file else f"{file}: has the name of {first[file.stem]}"
        for file in files
        if first.setdefault(file.stem, file) is not file
    ]
    if problems:
        raise UserError(problems, hint="name each recipe once; runs of one name would go to one folder")


def _for_each(items: Sequence[Item], read: Callable[[Item], Result]) -> list[Result]:
    """Return what `read` returns for each item; raises one UserError with the problems of all."""
    results: list[Result] = []
    problems: dict[str, None] = {}
    hints: dict[str, None] = {}
    for item in items:
        try:
            results.append(read(item))
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
            hints[error.hint] = None
    if problems:
        raise UserError(list(problems), hint="; ".join(filter(None, hints)))
    return results
