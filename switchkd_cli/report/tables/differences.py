"""What each row adds to the reference, benchmark by benchmark, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.report.results.finished_run import Scored
from switchkd_cli.report.results.seeds import Group, pairs
from switchkd_cli.report.stats.intervals import Estimate, over_seeds
from switchkd_cli.report.stats.paired_items import Answered
from switchkd_cli.report.stats.significance import (
    RESAMPLES,
    SEED,
    Paired,
    detectable,
    holm,
    interval,
    p_value,
)
from switchkd_cli.report.tables.cells import Cell, Interval, Line, Number, Probability, Table
from switchkd_cli.report.tables.columns import AVERAGE, Columns
from switchkd_cli.report.tables.footnotes import MDE, counted

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """One cell of the comparison: a benchmark, or the average, of one row minus the reference. In points."""

    name: str
    counted: bool
    ours: float
    theirs: float
    items: Interval | None
    """95 % over items; None where they can't be resampled."""
    p: float | None
    seeds: Estimate | None
    """Over the paired seeds; None where there is one pair."""
    paper: float | None
    """The same difference of the paper's printed numbers."""


@dataclass(frozen=True)
class Against:
    """A row minus the reference."""

    ours: Group
    theirs: Group
    seeds: tuple[int, ...]
    """Those paired; empty when two single runs of different seeds are."""
    found: tuple[Difference, ...]


def against(ours: Group, theirs: Group, columns: Columns, answers: Answered) -> Against:
    """The differences over the runs of both that pair; none of them when no seed is in common."""
    runs = pairs(ours, theirs)
    same = tuple(seed for pair in runs if (seed := _seed(*pair)) is not None)
    return Against(ours, theirs, same, tuple(_differences(runs, columns, answers)) if runs else ())


def _seed(ours: Scored, theirs: Scored) -> int | None:
    """What a pair is named by: the seed that both have, or that of the one that has any."""
    seeds = {ours.seed, theirs.seed} - {None}
    return seeds.pop() if len(seeds) == 1 else None


def tables(compared: Sequence[Against]) -> tuple[Table, ...]:
    """A table for each row; the p-values are corrected for all of them together."""
    corrected = iter(holm(_tested(compared)))
    return tuple(_table(row, [_next(corrected, d) for d in row.found]) for row in compared if row.found)


def notes(compared: Sequence[Against]) -> Iterator[str]:
    """In words what the tables say, and how they were made."""
    tested = _tested(compared)
    corrected = iter(holm(tested))
    for row in compared:
        name = f"{row.ours.title} minus {row.theirs.title}"
        if not row.found:
            yield f"{name}: no seed in common, so not compared: name runs of the same seeds"
            continue
        if any(d.p is not None for d in row.found):
            tests = [(d, _next(corrected, d)) for d in row.found]
            yield from _verdict(name, [d for d, p in tests if p is not None and p < ALPHA and d.counted])
        if not row.seeds and all(group.runs[0].is_run for group in (row.ours, row.theirs)):
            yield f"{name}: two runs of different seeds, so the seed is part of the difference"
    if tested:
        yield (
            f"95 % items: percentile bootstrap, {RESAMPLES:,} resamples of the same images (seed {SEED}) in both "
            "rows, each with all its questions; the rows are taken as trained; with several seeds, of their mean"
        )
        yield (
            "p: McNemar's exact test of one run's right and wrong answers against another's, else a permutation "
            f"test ({RESAMPLES:,} exchanges of the rows' answers, image by image); "
            f"Holm: corrected for the {len(tested)} tests here"
        )
        yield MDE
    if any(len(row.seeds) > 1 for row in compared):
        yield "95 % seeds: t interval of the mean over paired seeds, the items taken as they are; sd: over them"
    if any(d.paper is not None for row in compared for d in row.found):
        yield "paper: the difference of its printed numbers, single runs without intervals"


def _verdict(name: str, beyond: Sequence[Difference]) -> Iterator[str]:
    """Answers over the items, and which of them another training could undo."""
    told = {d.name: f"{d.name} {Number(d.ours - d.theirs, difference=True)}" for d in beyond}
    yield f"{name}, beyond chance over items after Holm's correction: {', '.join(told.values()) or 'nothing'}"
    unsure = [told[d.name] for d in beyond if d.seeds and not _clear(d.seeds)]
    if unsure:
        yield f"{name}, of these not beyond chance over seeds (the interval holds 0): {', '.join(unsure)}"


def _clear(estimate: Estimate) -> bool:
    return estimate.interval is not None and abs(estimate.mean) > estimate.interval


def _differences(
    runs: Sequence[tuple[Scored, Scored]], columns: Columns, answers: Answered
) -> Iterator[Difference]:
    one, other = runs[0]
    paired = {
        task: Paired(tuple(made[a.path] for a, _ in runs), tuple(made[b.path] for _, b in runs))
        for task, made in answers.units.items()
    }
    for task in columns.tasks:
        scores = [(a.scores[task], b.scores[task]) for a, b in runs]
        tested = [paired[task]] if task in paired else []
        counted = task not in columns.not_beaten
        yield _difference(BENCHMARKS[task].column, counted, scores, tested, _printed(one, other, task))
    averages = [(columns.average(a.scores), columns.average(b.scores)) for a, b in runs]
    kept = [task for task in columns.tasks if task not in columns.not_beaten]
    if kept:
        tested = [paired[task] for task in kept] if all(task in paired for task in kept) else []
        yield _difference("Avg", True, averages, tested, _printed(one, other, AVERAGE))


def _difference(
    name: str,
    counted: bool,
    scores: Sequence[tuple[float, float]],
    tested: Sequence[Paired],
    paper: float | None,
) -> Difference:
    found = interval(tested) if tested else None
    return Difference(
        name,
        counted,
        fmean(ours for ours, _ in scores),
        fmean(theirs for _, theirs in scores),
        Interval(*found, detectable(tested)) if found else None,
        p_value(tested) if tested else None,
        over_seeds([ours - theirs for ours, theirs in scores]) if len(scores) > 1 else None,
        paper,
    )


def _printed(ours: Scored, theirs: Scored, name: str) -> float | None:
    if (ours.recipe, ours.row) == (theirs.recipe, theirs.row):
        return None
    if name not in ours.paper or name not in theirs.paper:
        return None
    return ours.paper[name] - theirs.paper[name]


def _tested(compared: Sequence[Against]) -> list[float]:
    return [d.p for row in compared for d in row.found if d.p is not None]


def _next(corrected: Iterator[float], difference: Difference) -> float | None:
    return None if difference.p is None else next(corrected)


def _table(row: Against, corrected: Sequence[float | None]) -> Table:
    heads = ["points", row.theirs.title, row.ours.title, "difference", "95 % items", "p", "p, Holm"]
    seeds, paper = len(row.seeds) > 1, any(d.paper is not None for d in row.found)
    heads += ["sd, seeds", "95 % seeds"] if seeds else []
    heads += ["paper"] if paper else []
    lines = []
    for d, p in zip(row.found, corrected, strict=True):
        cells: list[Cell] = [
            Number(d.theirs, counted=d.counted),
            Number(d.ours, counted=d.counted),
            Number(d.ours - d.theirs, difference=True, counted=d.counted),
            d.items,
            None if d.p is None else Probability(d.p),
            None if p is None else Probability(p),
        ]
        if seeds and d.seeds:
            cells += [Number(d.seeds.deviation), _over_seeds(d.seeds)]
        cells += [None if d.paper is None else Number(d.paper, difference=True)] if paper else []
        lines.append(Line(d.name, tuple(cells)))
    over = f", {counted(row.seeds)}" if row.seeds else ""
    return Table(tuple(heads), tuple(lines), f"{row.ours.title} minus {row.theirs.title}{over}")


def _over_seeds(estimate: Estimate) -> Interval | None:
    half = estimate.interval
    mean = estimate.mean
    return None if half is None else Interval(mean - half, mean + half, estimate.detectable)


def averages(groups: Sequence[Group], columns: Columns) -> Mapping[str, Estimate | None]:
    """The average of each row over its own seeds, by the row's name."""
    found = {group.name: [columns.average(run.scores) for run in group.runs] for group in groups}
    return {name: over_seeds([x for x in values if x is not None]) for name, values in found.items()}
