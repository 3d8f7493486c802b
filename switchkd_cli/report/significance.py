"""Is a difference over the same items more than chance: paired bootstrap, exact and permutation tests, Holm.

What is drawn and exchanged is an image with all its questions (see units.py). The runs are taken as they are: what
another seed would have trained is statistics.py's question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np

from switchkd_cli.report.statistics import LEVEL, POWER, UPPER
from switchkd_cli.report.units import Array, Units, ratio

RESAMPLES = 9_999
SEED = 0
BATCH = 4_000_000  # units drawn at a time: bounds the memory
DIGITS = 12  # of a score 0..1: exchanges that come to the same difference are equal, in whatever order they were summed


@dataclass(frozen=True)
class Paired:
    """One benchmark answered by two rows, a run of each for every seed paired; units are never parted.

    With several seeds a row's score is its mean over them.
    """

    ours: tuple[Units, ...]
    theirs: tuple[Units, ...]

    @property
    def strata(self) -> tuple[Array, ...]:
        return self.ours[0].strata

    @property
    def size(self) -> int:
        """Units."""
        return len(self.ours[0].gained)

    @property
    def difference(self) -> float:
        """Points."""
        return float(
            np.mean([one.score - other.score for one, other in zip(self.ours, self.theirs, strict=True)])
        )

    def binary(self) -> bool:
        """Whether there is one run a side and each unit is one question, right or wrong."""
        sides = (*self.ours, *self.theirs)
        return len(sides) == 2 and all(u.single and np.isin(u.gained, (0, 1)).all() for u in sides)

    def plain(self) -> bool:
        """Whether the score is the mean of its units: their gains may then be averaged before anything else."""
        return all((u.possible == 1).all() for u in (*self.ours, *self.theirs))

    def gains(self) -> Array:
        """What the rows differ by in each unit, [units], the mean over the runs."""
        return np.mean([a.gained - b.gained for a, b in zip(self.ours, self.theirs, strict=True)], axis=0)

    def resampled(self) -> Callable[[Array], Array]:
        """From places [..., n] of one stratum's units to its difference [...]."""
        if self.plain():
            gains = self.gains()
            return lambda at: gains[at].mean(axis=-1)
        sums = self._sums()
        return lambda at: _difference(_counts(at, self.size) @ sums)

    def exchanged(self, swapped: Array) -> Array:
        """The difference [...] where `swapped` [..., units] is 1 for each unit that the rows exchange, else 0."""
        if self.plain():
            gains = self.gains()
            each = [gains[at].mean() - 2 * (swapped[..., at] @ gains[at]) / len(at) for at in self.strata]
        else:
            sums = self._sums()
            change = np.roll(sums, sums.shape[-1] // 2, axis=-1) - sums
            each = [_difference(sums[at].sum(axis=0) + swapped[..., at] @ change[at]) for at in self.strata]
        return np.mean(each, axis=0)

    def _sums(self) -> Array:
        """What each unit adds to the sums that the ratios are made of, [units, (gained, possible) of all runs]."""
        sides = [column for units in (*self.ours, *self.theirs) for column in (units.gained, units.possible)]
        return np.stack(sides, axis=-1)


def _difference(sums: Array) -> Array:
    """From sums [..., (gained, possible) of our runs, then of theirs] to the difference of the mean ratios [...]."""
    ratios = ratio(sums[..., ::2], sums[..., 1::2])
    ours, theirs = np.split(ratios, 2, axis=-1)
    return ours.mean(axis=-1) - theirs.mean(axis=-1)


def _counts(places: Array, size: int) -> Array:
    """How often each of `size` units is drawn, [..., size]."""
    rows = places.reshape(-1, places.shape[-1])
    flat = (rows + size * np.arange(len(rows))[:, None]).ravel()
    return np.bincount(flat, minlength=size * len(rows)).reshape(*places.shape[:-1], size).astype(float)


def _remembered(computed: Callable[[Sequence[Paired]], Any]) -> Callable[[Sequence[Paired]], Any]:
    """The same answers are tested once, though several recipes of a report share their rows."""
    known: dict[tuple[bytes, int], Any] = {}

    @wraps(computed)
    def remembered(benchmarks: Sequence[Paired]) -> Any:
        key = (_digest(benchmarks), RESAMPLES)
        if key not in known:
            known[key] = computed(benchmarks)
        return known[key]

    return remembered


def _digest(benchmarks: Sequence[Paired]) -> bytes:
    digest = hashlib.sha256()
    for pair in benchmarks:
        for side in (pair.ours, pair.theirs):
            digest.update(b"side")
            for units in side:
                for array in (units.gained, units.possible, *units.strata, np.array(units.single)):
                    digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.digest()


def interval(benchmarks: Sequence[Paired]) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean difference over benchmarks, in points, by a paired bootstrap.

    Units are resampled within each benchmark, for MME within each category. None where a stratum has one
    unit only.
    """
    found = _resampled(benchmarks)
    return found and found[:2]


def detectable(benchmarks: Sequence[Paired]) -> float | None:
    """The minimum detectable effect over these items: that difference, in points, which would be found in 80 of
    100 draws of as many images. By the same bootstrap; None where there is no interval."""
    found = _resampled(benchmarks)
    return found and found[2] * sum(NormalDist().inv_cdf(p) for p in (UPPER, POWER))


@_remembered
def _resampled(benchmarks: Sequence[Paired]) -> tuple[float, float, float] | None:
    """The interval's two ends, and the standard error."""
    if any(len(at) < 2 for pair in benchmarks for at in pair.strata):
        return None
    from scipy.stats import bootstrap

    measured = [(pair.resampled(), len(pair.strata)) for pair in benchmarks]

    def mean(*places: Array, axis: int = -1) -> Array:
        rest, each = iter(places), []
        for measure, strata in measured:
            each.append(np.mean([measure(np.asarray(next(rest), dtype=int)) for _ in range(strata)], axis=0))
        return 100 * np.mean(each, axis=0)

    drawn = bootstrap(
        [at for pair in benchmarks for at in pair.strata],
        mean,
        n_resamples=RESAMPLES,
        batch=_batch(benchmarks),
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    ends = drawn.confidence_interval
    return float(ends.low), float(ends.high), float(drawn.standard_error)


@_remembered
def p_value(benchmarks: Sequence[Paired]) -> float:
    """Two-sided: could the rows' answers be exchanged, unit by unit?

    McNemar's exact test for one benchmark of right and wrong answers, else a permutation test of the mean
    difference over benchmarks (exact when there are few enough units).
    """
    if len(benchmarks) == 1 and benchmarks[0].binary():
        return _mcnemar(benchmarks[0].ours[0].gained, benchmarks[0].theirs[0].gained)
    return _permuted(benchmarks)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being as many as they are."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def _mcnemar(ours: Array, theirs: Array) -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[np.sum((ours == a) & (theirs == b)) for b in (1, 0)] for a in (1, 0)]
    return float(mcnemar(table, exact=True).pvalue)


def _permuted(benchmarks: Sequence[Paired]) -> float:
    sizes = [pair.size for pair in benchmarks]
    units = sum(sizes)
    if units < 2:
        return 1.0  # one unit, exchanged or not, lies as far from 0
    ends = np.cumsum(sizes)[:-1]

    def mean(swapped: Array, axis: int = -1) -> Array:
        each = [
            pair.exchanged(part)
            for pair, part in zip(benchmarks, np.split(swapped, ends, axis=-1), strict=True)
        ]
        return np.round(np.mean(each, axis=0), DIGITS)

    if 2**units <= RESAMPLES:
        every = np.array(list(product((0.0, 1.0), repeat=units)))
        return float(np.mean(np.abs(mean(every)) >= abs(mean(every[0]))))
    from scipy.stats import monte_carlo_test

    random = np.random.default_rng(SEED)
    found = monte_carlo_test(
        np.zeros(units),
        lambda size: random.integers(0, 2, size, dtype=np.int8).astype(float),
        mean,
        n_resamples=RESAMPLES,
        batch=_batch(benchmarks),
        vectorized=True,
    )
    return float(found.pvalue)


def _batch(benchmarks: Sequence[Paired]) -> int:
    return max(1, BATCH // sum(pair.size for pair in benchmarks))
