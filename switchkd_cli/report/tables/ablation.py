"""The rows of one recipe over seeds: means, intervals, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from switchkd_cli.report.results.finished_run import Scored
from switchkd_cli.report.results.seeds import SFT
from switchkd_cli.report.stats.intervals import Estimate, over_seeds, paired
from switchkd_cli.report.tables import footnotes
from switchkd_cli.report.tables.cells import Cell, Line, Number, Report, Table
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.tables.comparison import Teacher, of_baselines, of_paper, of_teacher, same_questions


class Planned(Protocol):
    """A run that was asked for, finished or not."""

    @property
    def row(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Row:
    """A row of the recipe and its finished runs."""

    title: str
    runs: tuple[Scored, ...]
    averages: Mapping[int, float]
    """By seed."""
    missing: tuple[int, ...]
    """Seeds that were asked for and have no finished run."""


def ablation(
    runs: Sequence[Scored],
    teacher: Teacher | None,
    *,
    planned: Sequence[Planned] = (),
    controls: Sequence[str] = (),
) -> Report:
    """The rows in the order planned. The first is studied; all are measured by the first control.

    `planned` are the runs asked for, by default those that finished. Raises UserError when the runs were
    not asked the same questions.
    """
    same_questions(runs, teacher)
    columns = Columns.of(runs[0].scores, teacher)
    rows = _rows(runs, planned or runs, columns)
    ours = next(iter(rows))
    reference = next((name for name in (*controls, SFT) if name in rows and name != ours), None)
    means = [Line(row.title, _means(columns, row)) for row in rows.values() if row.runs]
    scores = [
        *of_teacher(columns, teacher),
        *means,
        *of_baselines(columns, teacher),
        *of_paper(columns, runs),
    ]
    return Report(
        f"{footnotes.title(runs)}, {footnotes.counted(_seeds(planned or runs))}",
        (_differences(rows, ours, reference), Table(("mean over seeds", *columns.heads), tuple(scores))),
        (
            *_verdict(rows, ours),
            "±: half the 95 % t interval over seeds; differences are paired by seed",
            "not clear: the interval holds 0 (or there is none); not corrected for the number of rows",
            footnotes.MDE,
            *_missing(rows),
            *footnotes.of_scores(runs, columns, teacher),
            *footnotes.lengths(runs),
            f"train s: seconds of the last stage ({runs[0].stages[-1]['name']}), mean over seeds",
            *footnotes.files([_folder(runs)]),
        ),
    )


def _rows(runs: Sequence[Scored], planned: Sequence[Planned], columns: Columns) -> dict[str, Row]:
    seeds = _seeds(planned)
    rows = {}
    for name, title in {run.row: run.title for run in planned}.items():
        own = {run.seed: run for run in runs if run.row == name}
        averages = {seed: columns.average(run.scores) for seed, run in own.items()}
        counted = {seed: average for seed, average in averages.items() if average is not None}
        missing = tuple(seed for seed in seeds if seed not in own)
        rows[name] = Row(title, tuple(own.values()), counted, missing)
    return rows


def _seeds(planned: Sequence[Planned]) -> list[int]:
    return sorted({run.seed for run in planned})


def _differences(rows: Mapping[str, Row], ours: str, reference: str | None) -> Table:
    """Averages, what each row adds to the reference, and what the first row adds to each."""
    heads = ["row", "seeds", "average"]
    heads += [f"minus {rows[reference].title}"] if reference else []
    heads += [f"{rows[ours].title} minus it"] if len(rows) > 1 else []
    lines = []
    for row in rows.values():
        found, asked = len(row.runs), len(row.runs) + len(row.missing)
        cells: list[Cell] = [f"{found} of {asked}" if row.missing else found]
        cells.append(_number(over_seeds(list(row.averages.values()))))
        if reference:
            cells.append(_minus(row, rows[reference]))
        if len(rows) > 1:
            cells.append(_minus(rows[ours], row))
        seconds = [run.seconds for run in row.runs if run.seconds is not None]
        lines.append(Line(row.title, (*cells, round(fmean(seconds)) if seconds else None)))
    return Table((*heads, "train s"), tuple(lines))


def _minus(ours: Row, theirs: Row) -> Number | None:
    found = None if ours is theirs else paired(ours.averages, theirs.averages)
    return found and Number.minus(found)


def _number(estimate: Estimate | None) -> Number | None:
    return estimate and Number(estimate.mean, estimate.interval, estimate.seeds)


def _means(columns: Columns, row: Row) -> tuple[Cell, ...]:
    return columns.cells({task: fmean(run.scores[task] for run in row.runs) for task in columns.tasks})


def _verdict(rows: Mapping[str, Row], ours: str) -> Iterator[str]:
    """In words what the last column of differences says."""
    found: dict[str, list[str]] = {}
    for row in rows.values():
        difference = _minus(rows[ours], row)
        if difference is not None:
            found.setdefault(_word(difference), []).append(row.title)
    for word, titles in found.items():
        yield f"{rows[ours].title} {word}: {'; '.join(titles)}"


def _word(difference: Number) -> str:
    if difference.interval is None:
        return "can't be told from (one seed in common)"
    if not difference.clear:
        return "does not clearly differ from"
    return "is clearly better than" if difference.value > 0 else "is clearly worse than"


def _missing(rows: Mapping[str, Row]) -> Iterator[str]:
    for row in rows.values():
        if row.missing:
            yield f"{row.title}: no finished run for {footnotes.counted(row.missing)}"


def _folder(runs: Sequence[Scored]) -> Path:
    """The recipe's folder, above rows and seeds."""
    return runs[0].path.parents[1]
