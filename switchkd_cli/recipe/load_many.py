"""Several recipes at once: the rows that are asked of them, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.find import find
from switchkd_cli.recipe.fingerprint import Fingerprints
from switchkd_cli.recipe.load import load_rows, row_names
from switchkd_cli.recipe.run import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """A recipe and the runs asked of it, row after row, each with its seeds."""

    file: Path
    runs: tuple[Run, ...]

    @property
    def first(self) -> list[Run]:
        """The runs of the first seed."""
        return [run for run in self.runs if run.seed == self.runs[0].seed]


def load_tables(
    names: Sequence[str],
    rows: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    seed: int | None = None,
    world: str | None = None,
) -> list[Table]:
    """Read recipes, by name or file; of each the rows that it has of those named, or all.

    Raises UserError with the problems of all recipes: also for a row that none has, for a recipe that has none of
    the rows, and for two recipes of one name.
    """
    files = _each(names, find)
    _require_different(files)
    asked = dict(zip(files, _asked(files, rows), strict=True))
    fingerprints = Fingerprints()

    def table(file: Path) -> Table:
        first = load_rows(file, asked[file], overrides, seed, world, fingerprints)
        others = range(first[0].seed + 1, first[0].seed + seeds)
        more = [load_rows(file, asked[file], overrides, other, world, fingerprints) for other in others]
        return Table(file, tuple(run for same_row in zip(first, *more, strict=True) for run in same_row))

    return _each(files, table)


def _asked(files: Sequence[Path], rows: Sequence[str] | None) -> list[Sequence[str] | None]:
    """The named rows that each recipe has; a single recipe tells itself what is wrong with them."""
    if rows is None or len(files) == 1:
        return [rows] * len(files)
    has = _each(files, row_names)
    known = list(dict.fromkeys(name for names in has for name in names))
    problems = [
        f"--rows: no such row in any of the recipes, got {row!r}{did_you_mean(row, known)}"
        for row in rows
        if row not in known
    ]
    asked = [[row for row in rows if row in names] for names in has]
    if not problems:
        problems = [
            f"{file}: has none of the rows {', '.join(rows)} (known: {', '.join(names)})"
            for file, names, own in zip(files, has, asked, strict=True)
            if not own
        ]
    if problems:
        raise UserError(problems, hint="leave out the recipe, or --rows for all rows")
    return list(asked)


def _require_different(files: Sequence[Path]) -> None:
    """Runs are kept under their recipe's name."""
    stems: dict[str, Path] = {}
    problems = [
        f"{file}: named twice" if stems[file.stem] == file else f"{file}: has the name of {stems[file.stem]}"
        for file in files
        if stems.setdefault(file.stem, file) is not file
    ]
    if problems:
        raise UserError(problems, hint="name each recipe once; runs of one name would go to one folder")


def _each(items: Iterable[str | Path], read: Callable[..., T]) -> list[T]:
    """What is read of each; raises one UserError with the problems of all."""
    found, problems, hints = [], dict[str, None](), dict[str, None]()
    for item in items:
        try:
            found.append(read(item))
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
            hints[error.hint] = None
    if problems:
        raise UserError(list(problems), hint="; ".join(filter(None, hints)))
    return found
