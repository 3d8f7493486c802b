"""The difference of each row from the reference, benchmark by benchmark, and whether it is more than chance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from switchkd_cli.report.document import AVERAGE_HEAD, Column, Interval, Number, Probability, Table
from switchkd_cli.report.results.paired_items import AnswerUnits
from switchkd_cli.report.results.row_runs import RowRuns, mean_of, over_seeds, pair_runs, seeds_in_words
from switchkd_cli.report.stats.significance import ALPHA, RESAMPLES, SEED, PairedUnits, holm, interval, p_value
from switchkd_cli.report.tables.columns import AVERAGE, Columns
from switchkd_cli.report.texts import MDE, NOTES


@dataclass
class Difference:
    """One benchmark, or the average, of one row minus the reference. In points."""

    head: str
    ours: Number
    theirs: Number
    number: Number
    over_seeds: Number
    """The same, as the mean over the pairs of runs with its interval."""
    deviation: Number | None
    """The standard deviation over the pairs; None with a single one."""
    items: Interval | None
    """95 % over items; None where they can't be resampled."""
    p: Probability | None
    printed: Number | None
    """The same difference of the paper's numbers."""
    corrected: Probability | None = None
    """`p` after Holm's correction, see `compare`."""


TESTS: Sequence[Column] = (("95 % items", "items"), ("p", "p"), ("p, Holm", "corrected"))
"""Columns of a difference's tests over items."""
PAPER: Column = ("paper", "printed")


@dataclass(frozen=True)
class RowDifference:
    """A row minus the reference."""

    ours: RowRuns
    theirs: RowRuns
    seeds: tuple[int, ...]
    """Those paired; empty when two single runs of different seeds are."""
    each: Mapping[str, Difference]
    """By the column's head."""

    @property
    def name(self) -> str:
        return f"{self.ours.title} minus {self.theirs.title}"

    @property
    def average(self) -> Difference | None:
        return self.each.get(AVERAGE_HEAD)

    def over_seeds(self, head: str) -> Number | None:
        """The difference under a column's head; None where there is none."""
        return self.each[head].over_seeds if head in self.each else None

    @property
    def in_paper(self) -> bool:
        """Whether the paper prints both rows."""
        return any(d.printed for d in self.each.values())


def compare(pairs: Iterable[tuple[RowRuns, RowRuns]], columns: Columns, answers: AnswerUnits) -> list[RowDifference]:
    """Each pair's first row minus the second, the p-values corrected for all of them together."""
    rows = [_difference(ours, theirs, columns, answers) for ours, theirs in pairs]
    tested = [(difference, difference.p.value) for row in rows for difference in row.each.values() if difference.p]
    for (difference, _), corrected in zip(tested, holm([p for _, p in tested]), strict=True):
        difference.corrected = Probability(corrected)
        difference.over_seeds = replace(difference.over_seeds, beyond=corrected < ALPHA)
    return rows


def _difference(ours: RowRuns, theirs: RowRuns, columns: Columns, answers: AnswerUnits) -> RowDifference:
    """The differences over the runs of both that pair; none of them when no seed is in common."""
    runs = pair_runs(ours, theirs)
    seeds = [{run.seed for run in pair if run.seed is not None} for pair in runs]
    paired = {
        task: PairedUnits(tuple(made[a.path] for a, _ in runs), tuple(made[b.path] for _, b in runs))
        for task, made in answers.units.items()
    }
    one, other = ours.runs[0], theirs.runs[0]
    both = one.paper.keys() & other.paper.keys() if (one.recipe, one.row) != (other.recipe, other.row) else ()
    printed = {name: Number(one.paper[name] - other.paper[name], difference=True) for name in both}
    each: dict[str, Difference] = {}
    for head, (name, tasks) in zip(columns.heads, columns.figures.items(), strict=True):
        if not runs or not tasks:
            continue
        shown, score = columns.shown(name), mean_of(tasks)
        pairs = [(score(one), score(other)) for one, other in runs]
        gaps = [one - other for one, other in pairs]
        means, gap = [fmean(side) for side in zip(*pairs, strict=True)], over_seeds(gaps, difference=True)
        tested = [paired[task] for task in tasks] if paired.keys() >= set(tasks) else []
        assert gap is not None
        items = interval(tested) if tested else None
        each[head] = Difference(
            head,
            ours=Number(means[0], **shown),
            theirs=Number(means[1], **shown),
            number=Number(means[0] - means[1], difference=True, **shown),
            over_seeds=replace(gap, **shown),
            deviation=Number(stdev(gaps), digits=shown["digits"]) if len(gaps) > 1 else None,
            items=items and replace(items, digits=shown["digits"]),
            # an accuracy counts the answers of its score once more: no test of its own to correct for
            p=Probability(p_value(tested)) if tested and name in (*columns.tasks, AVERAGE) else None,
            printed=printed.get(name),
        )
    return RowDifference(ours, theirs, tuple(s.pop() for s in seeds if len(s) == 1), each)


def tables(rows: Sequence[RowDifference]) -> Iterator[Table]:
    """A table for each row."""
    for row in rows:
        if not row.each:
            continue
        titles: list[Column] = [("points", "head"), (row.theirs.title, "theirs"), (row.ours.title, "ours")]
        over_seeds: list[Column] = [("sd, seeds", "deviation"), ("95 % seeds", "over_seeds.ends")]
        seeds = over_seeds if len(row.seeds) > 1 else []
        shown = [*titles, ("difference", "number"), *TESTS, *seeds, *([PAPER] if row.in_paper else [])]
        over = f", {seeds_in_words(row.seeds)}" if row.seeds else ""
        yield Table.of(row.each.values(), shown, title=f"{row.name}{over}")


def notes(rows: Sequence[RowDifference]) -> Iterator[str]:
    """What the tables say, in words, and how they were made."""
    for row in rows:
        if not row.each:
            yield f"{row.name}: no seed in common, so not compared: name runs of the same seeds"
            continue
        if any(d.p for d in row.each.values()):
            beyond = [d for d in row.each.values() if d.over_seeds.beyond and d.number.counted]
            found = ", ".join(f"{d.head} {d.number}" for d in beyond) or "nothing"
            yield f"{row.name}, beyond chance over items after Holm's correction: {found}"
            if unsure := [f"{d.head} {d.number}" for d in beyond if d.deviation and d.over_seeds.side == 0]:
                yield f"{row.name}, of these not beyond chance over seeds (the interval includes 0): {', '.join(unsure)}"
        if not row.seeds and row.ours.is_run and row.theirs.is_run:
            yield f"{row.name}: two runs of different seeds, so the seed is part of the difference"
    if tests := sum(bool(d.p) for row in rows for d in row.each.values()):
        yield NOTES["items"].format(resamples=RESAMPLES, seed=SEED)
        yield NOTES["p"].format(resamples=RESAMPLES, tests=tests)
        yield MDE
    if any(len(row.seeds) > 1 for row in rows):
        yield "95 % seeds: t interval of the mean over paired seeds, the items taken as they are; sd: over them"
    if any(row.in_paper for row in rows):
        yield "paper: the difference of its printed numbers, single runs without intervals"
