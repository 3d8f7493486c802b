"""A recipe row's runs over seeds: means with 95 % intervals, paired differences, and which runs of two rows are paired."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from switchkd_cli.errors import UserError, did_you_mean, shown
from switchkd_cli.report.document import POWER, UPPER, Number
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.results.finished_run import ScoredRun

SFT = "sft"  # the default reference row

Score = Callable[[ScoredRun], float | None]
"""One figure of a run."""


def mean_of(names: Sequence[str]) -> Callable[[ScoredRun], Any]:
    """The mean of these of a run's scores; None where there are none."""
    return lambda run: fmean(run.scores[name] for name in names) if names else None


def over_seeds(values: Sequence[float], *, difference: bool = False) -> Number | None:
    """The mean of one value per seed and its 95 % Student-t interval; None without a value."""
    if not values:
        return None
    mean, count = fmean(values), len(values)
    if count < 2:
        return Number(mean, None, count, difference)
    half, detectable = (errors * stdev(values) / sqrt(count) for errors in _standard_errors(count - 1))
    return Number(mean, half, count, difference, detectable=detectable if difference else None)


def paired_difference(ours: Mapping[int | None, float], theirs: Mapping[int | None, float]) -> Number | None:
    """The mean of ours minus theirs over the seeds that both have; None when they share none.

    Pairing removes what a seed does to both: the initialisation and the order of the data.
    """
    return over_seeds([ours[seed] - theirs[seed] for seed in ours if seed in theirs], difference=True)


@cache
def _standard_errors(freedom: int) -> tuple[float, float]:
    """Half of a mean's interval and its minimum detectable effect, in standard errors, by degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    half = float(t.ppf(UPPER, freedom))
    return half, brentq(lambda effect: nct.sf(half, freedom, effect) - POWER, 0, 10 * half)


@dataclass(frozen=True, eq=False)
class RowRuns:
    """A row's finished runs, seeds in ascending order."""

    name: str
    """Title and seeds."""
    title: str
    """Without the seeds, where that is enough to tell it from the others."""
    runs: tuple[ScoredRun, ...]

    @property
    def row(self) -> str:
        return self.runs[0].row

    @property
    def is_run(self) -> bool:
        """Whether it was trained here; a scored model has no seed."""
        return self.runs[0].is_run

    def count(self, planned: int) -> int | str:
        """The number of runs, and of how many where some are missing."""
        return len(self.runs) if len(self.runs) == planned else f"{len(self.runs)} of {planned}"

    def by_seed(self, score: Score) -> dict[int | None, float]:
        """The runs' values of one figure, without runs that lack it."""
        values = {run.seed: score(run) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean(self, score: Score) -> Number | None:
        """The mean over the runs that have this figure; None without one."""
        return over_seeds(list(self.by_seed(score).values()))

    def figure(self, name: str, factor: float, form: str) -> str | None:
        """The mean of one of `ScoredRun.measured`, without an interval."""
        mean = self.mean(lambda run: run.measured.get(name))
        return format(factor * mean.value, form) if mean else None

    def minus(self, other: "RowRuns", score: Score) -> Number | None:
        """The difference of a figure, paired by seed; None without a seed in common."""
        return paired_difference(self.by_seed(score), other.by_seed(score))

    def means(self) -> dict[str, float]:
        """Mean scores over the runs, by the names of `ScoredRun.scores`."""
        each = grouped(pair for run in self.runs for pair in run.scores.items())
        return {name: fmean(values) for name, values in each.items()}


def group_by_row(runs: Sequence[ScoredRun], *, together: bool = False) -> tuple[RowRuns, ...]:
    """The runs by row folder (of a scored model its own), in the given order.

    Runs of a single row each stand alone, unless they stay `together`.
    """
    once = {run.path: run for run in runs}.values()
    rows = grouped((run.path.parent if run.is_run else run.path, run) for run in once)
    if len(rows) == 1 and not together:
        return tuple(RowRuns(run.name, run.name if len(once) > 1 else run.title, (run,)) for run in once)
    plain = titles = [own[0].title for own in rows.values()]
    for prefixes in ([own[0].recipe for own in rows.values()], [shown(folder) for folder in rows]):
        count = Counter(titles)  # rows of one title get their recipe, and their folder if that is not enough
        named = zip(prefixes, plain, titles, strict=True)
        titles = [f"{prefix}: {short}" if count[title] > 1 else title for prefix, short, title in named]
    return tuple(map(_row, titles, rows.values()))


def _row(title: str, runs: Sequence[ScoredRun]) -> RowRuns:
    own = [replace(run, title=title) for run in sorted(runs, key=lambda run: run.seed or 0)]
    name = own[0].name if len(own) == 1 else f"{title} ({seeds_in_words([run.seed for run in own])})"
    return RowRuns(name, title, tuple(own))


def reference(rows: Sequence[RowRuns], controls: Sequence[str], against: str | None) -> RowRuns:
    """The row that the others are measured against: `against`, else the first control, else the first row.

    Raises UserError when no row is called `against`.
    """
    by_name = {row.row: row for row in reversed(rows)}
    if against is not None and against not in by_name:
        raise UserError(f"--against: no run of this row here, got {against!r}{did_you_mean(against, by_name)}")
    names = (*controls, SFT) if against is None else (against,)
    return next((by_name[name] for name in names if name in by_name), rows[0])


def pair_runs(ours: RowRuns, theirs: RowRuns) -> list[tuple[ScoredRun, ScoredRun]]:
    """Pairs of runs with the same seed; two single runs are a pair whatever their seeds.

    A model without a seed is paired with every run.
    """
    if not (ours.is_run and theirs.is_run) or len(ours.runs) == len(theirs.runs) == 1:
        return [(one, other) for one in ours.runs for other in theirs.runs]
    by_seed = {run.seed: run for run in theirs.runs}
    return [(run, by_seed[run.seed]) for run in ours.runs if run.seed in by_seed]


def seeds_in_words(seeds: Sequence[int | None]) -> str:
    """Ascending seeds in words: `seed 1`, `seeds 1-5`, `seeds 1, 3`."""
    known = [seed for seed in seeds if seed is not None]
    if len(known) == 1:
        return f"seed {known[0]}"
    if len(known) > 2 and known[-1] - known[0] == len(known) - 1:
        return f"seeds {known[0]}-{known[-1]}"
    return f"seeds {', '.join(map(str, known))}"
