"""The difference of each row from the reference, benchmark by benchmark, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from switchkd_cli.report.document.cells import Cell, Interval, Number, Probability
from switchkd_cli.report.document.model import Line, Table
from switchkd_cli.report.results.finished_run import ScoredRun
from switchkd_cli.report.results.row_runs import RowRuns, pair_runs, seeds_in_words
from switchkd_cli.report.stats import significance
from switchkd_cli.report.stats.intervals import Estimate, over_seeds
from switchkd_cli.report.stats.paired_items import AnswerUnits
from switchkd_cli.report.stats.significance import ALPHA, RESAMPLES, SEED, PairedUnits, holm
from switchkd_cli.report.tables.columns import AVERAGE, Columns
from switchkd_cli.report.tables.footnotes import MDE


@dataclass(frozen=True)
class Difference:
    """One benchmark, or the average, of one row minus the reference. In points."""

    head: str
    counted: bool
    ours: float
    theirs: float
    items: Interval | None
    """95 % over items; None where they can't be resampled."""
    p: float | None
    seeds: Estimate | None
    """Over the paired seeds; None with a single pair."""
    paper: float | None
    """The same difference of the paper's printed numbers."""
    corrected: float | None = None
    """`p` after Holm's correction, see `with_correction`."""

    @property
    def value(self) -> float:
        return self.ours - self.theirs

    @property
    def beyond(self) -> bool:
        """Whether it is beyond chance over the items."""
        return self.corrected is not None and self.corrected < ALPHA

    @property
    def tests(self) -> list[Cell]:
        """The cells of its tests over items."""
        return [self.items, *(None if p is None else Probability(p) for p in (self.p, self.corrected))]

    @property
    def over_seeds(self) -> Number:
        """Its cell with the interval over seeds."""
        seeds = self.seeds or Estimate(self.value, None, 1)
        return Number.minus(seeds, counted=self.counted, beyond=self.beyond)

    @property
    def printed(self) -> Number | None:
        return None if self.paper is None else Number(self.paper, difference=True)


@dataclass(frozen=True)
class RowDifference:
    """A row minus the reference."""

    ours: RowRuns
    theirs: RowRuns
    seeds: tuple[int, ...]
    """Those paired; empty when two single runs of different seeds are."""
    each: tuple[Difference, ...]

    @property
    def name(self) -> str:
        return f"{self.ours.title} minus {self.theirs.title}"

    @property
    def in_paper(self) -> bool:
        """Whether the paper prints both rows."""
        return any(d.paper is not None for d in self.each)


def row_difference(ours: RowRuns, theirs: RowRuns, columns: Columns, answers: AnswerUnits) -> RowDifference:
    """The differences over the runs of both that pair; none of them when no seed is in common."""
    runs = pair_runs(ours, theirs)
    seeds = [{run.seed for run in pair if run.seed is not None} for pair in runs]
    paired = {
        task: PairedUnits(tuple(made[a.path] for a, _ in runs), tuple(made[b.path] for _, b in runs))
        for task, made in answers.units.items()
    }
    each = []
    for head, (name, figure) in zip(columns.heads, columns.figures.items(), strict=True):
        tasks = columns.counted_tasks if name == AVERAGE else [name]
        tested = [paired[task] for task in tasks] if all(task in paired for task in tasks) else []
        scores = [(figure(a), figure(b)) for a, b in runs]
        known = [(one, other) for one, other in scores if one is not None and other is not None]
        if known:
            ends = significance.interval(tested) if tested else None
            difference = Difference(
                head,
                name not in columns.not_beaten,
                fmean(one for one, _ in known),
                fmean(other for _, other in known),
                Interval(*ends, significance.detectable(tested)) if ends else None,
                significance.p_value(tested) if tested else None,
                over_seeds([one - other for one, other in known]) if len(known) > 1 else None,
                _printed(*runs[0], name),
            )
            each.append(difference)
    return RowDifference(ours, theirs, tuple(s.pop() for s in seeds if len(s) == 1), tuple(each))


def _printed(ours: ScoredRun, theirs: ScoredRun, name: str) -> float | None:
    same = (ours.recipe, ours.row) == (theirs.recipe, theirs.row)
    if same or name not in ours.paper or name not in theirs.paper:
        return None
    return ours.paper[name] - theirs.paper[name]


def with_correction(rows: Sequence[RowDifference]) -> list[RowDifference]:
    """The same, the p-values corrected for all of them together."""
    corrected = iter(holm([d.p for row in rows for d in row.each if d.p is not None]))
    return [
        replace(row, each=tuple(d if d.p is None else replace(d, corrected=next(corrected)) for d in row.each))
        for row in rows
    ]


def tables(rows: Sequence[RowDifference]) -> Iterator[Table]:
    """A table for each row."""
    for row in rows:
        if not row.each:
            continue
        heads = ["points", row.theirs.title, row.ours.title, "difference", "95 % items", "p", "p, Holm"]
        several = len(row.seeds) > 1
        heads += ["sd, seeds", "95 % seeds"] if several else []
        heads += ["paper"] if row.in_paper else []
        lines = []
        for d in row.each:
            cells: list[Cell] = [Number(score, counted=d.counted) for score in (d.theirs, d.ours)]
            cells += [Number(d.value, difference=True, counted=d.counted), *d.tests]
            if several and d.seeds and d.seeds.deviation is not None:
                cells += [Number(d.seeds.deviation), Interval(d.seeds.low, d.seeds.high, d.seeds.detectable)]
            cells += [d.printed] if row.in_paper else []
            lines.append(Line(d.head, tuple(cells)))
        over = f", {seeds_in_words(row.seeds)}" if row.seeds else ""
        yield Table(tuple(heads), tuple(lines), f"{row.name}{over}")


def notes(rows: Sequence[RowDifference]) -> Iterator[str]:
    """What the tables say, in words, and how they were made."""
    for row in rows:
        if not row.each:
            yield f"{row.name}: no seed in common, so not compared: name runs of the same seeds"
            continue
        if any(d.p is not None for d in row.each):
            beyond = [d for d in row.each if d.beyond and d.counted]
            found = ", ".join(map(_points, beyond)) or "nothing"
            yield f"{row.name}, beyond chance over items after Holm's correction: {found}"
            if unsure := [_points(d) for d in beyond if d.seeds and d.seeds.side == 0]:
                yield f"{row.name}, of these not beyond chance over seeds (the interval includes 0): {', '.join(unsure)}"
        if not row.seeds and row.ours.is_run and row.theirs.is_run:
            yield f"{row.name}: two runs of different seeds, so the seed is part of the difference"
    if tests := sum(d.p is not None for row in rows for d in row.each):
        yield (
            f"95 % items: percentile bootstrap, {RESAMPLES:,} resamples of the same images (seed {SEED}) in both "
            "rows, each with all its questions; the rows are taken as trained; with several seeds, of their mean"
        )
        yield (
            "p: McNemar's exact test of one run's right and wrong answers against another's, else a permutation "
            f"test ({RESAMPLES:,} exchanges of the rows' answers, image by image); "
            f"Holm: corrected for the {tests} tests here"
        )
        yield MDE
    if any(len(row.seeds) > 1 for row in rows):
        yield "95 % seeds: t interval of the mean over paired seeds, the items taken as they are; sd: over them"
    if any(row.in_paper for row in rows):
        yield "paper: the difference of its printed numbers, single runs without intervals"


def _points(difference: Difference) -> str:
    return f"{difference.head} {Number(difference.value, difference=True)}"
