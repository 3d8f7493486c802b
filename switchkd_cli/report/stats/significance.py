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

from switchkd_cli.report.stats.intervals import LEVEL, POWER, UPPER
from switchkd_cli.report.stats.metric_units import Array, Units, ratio

RESAMPLES = 9_999
SEED = 0
BATCH = 4_000_000  # images drawn at a time: bounds the memory
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
        """Whether the same is possible in every run: gains may then be averaged before anything else."""
        first, *others = (*self.ours, *self.theirs)
        return all(np.array_equal(first.possible, units.possible) for units in others)

    def gains(self) -> Array:
        """What the rows differ by in each unit, [units], the mean over the runs."""
        return np.mean([a.gained - b.gained for a, b in zip(self.ours, self.theirs, strict=True)], axis=0)

    def added(self) -> tuple[Array, Array, Callable[[Array], Array]]:
        """What each unit adds to the sums [units, sums], how an exchange changes that, and from sums to the difference."""
        if self.plain():
            sums = np.stack([self.gains(), self.ours[0].possible], axis=-1)
            return sums, sums * (-2, 0), lambda of: ratio(of[..., 0], of[..., 1])
        runs = (*self.ours, *self.theirs)
        sums = np.stack([column for units in runs for column in (units.gained, units.possible)], axis=-1)
        return sums, np.roll(sums, sums.shape[-1] // 2, axis=-1) - sums, _difference


class Pool:
    """The images of some benchmarks: one that several ask about, or several categories of one, is drawn and exchanged once."""

    def __init__(self, benchmarks: Sequence[Paired]) -> None:
        self.benchmarks = benchmarks
        numbers: dict[object, int] = {}
        self.of = [
            np.array([numbers.setdefault(name, len(numbers)) for name in _names(place, pair)], dtype=int)
            for place, pair in enumerate(benchmarks)
        ]
        """The image of each unit, by benchmark."""
        self.size = len(numbers)
        self._added = [pair.added() for pair in benchmarks]

    def parts(self) -> list[Array]:
        """The images of strata that share some, together, [images] each: the sizes of the others are kept."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        strata = [of[at] for of, pair in zip(self.of, self.benchmarks, strict=True) for at in pair.strata]
        rows = np.repeat(np.arange(len(strata)), [len(images) for images in strata])
        edges = (np.ones(len(rows)), (rows + self.size, np.concatenate(strata)))
        nodes = self.size + len(strata)
        _, part = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)
        part = part[: self.size]
        return [np.flatnonzero(part == name) for name in dict.fromkeys(part.tolist())]

    def drawn(self, images: Array) -> Array:
        """The mean difference [...] where these images [..., n] are drawn."""
        times = _counts(images, self.size)
        return self._mean(lambda of, at, sums, change: times[..., of[at]] @ sums[at])

    def exchanged(self, swapped: Array) -> Array:
        """The mean difference [...] where `swapped` [..., images] is 1 for each image that the rows exchange, else 0."""
        return self._mean(
            lambda of, at, sums, change: sums[at].sum(axis=0) + swapped[..., of[at]] @ change[at]
        )

    def _mean(self, summed: Callable[[Array, Array, Array, Array], Array]) -> Array:
        """Over benchmarks, for each over its strata."""
        each = []
        for of, pair, (sums, change, difference) in zip(self.of, self.benchmarks, self._added, strict=True):
            strata = [difference(summed(of, at, sums, change)) for at in pair.strata]
            each.append(np.mean(strata, axis=0))
        return np.mean(each, axis=0)


def _names(place: int, pair: Paired) -> list[object]:
    """What each unit is drawn by: its image, or itself."""
    images = pair.ours[0].images or [None] * pair.size
    return [image or (place, number) for number, image in enumerate(images)]


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
                digest.update(repr(units.images).encode())
                for array in (units.gained, units.possible, *units.strata, np.array(units.single)):
                    digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.digest()


def interval(benchmarks: Sequence[Paired]) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean difference over benchmarks, in points, by a paired bootstrap.

    Images are resampled within each benchmark, for MME within each category, but for those that show some of the same
    images: their images are drawn together. None where a stratum has one unit only.
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

    pool = Pool(benchmarks)

    def mean(*images: Array, axis: int = -1) -> Array:
        return 100 * pool.drawn(np.concatenate(images, axis=-1).astype(int))

    drawn = bootstrap(
        pool.parts(),
        mean,
        n_resamples=RESAMPLES,
        batch=_batch(pool),
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
    pool = Pool(benchmarks)
    if pool.size < 2:
        return 1.0  # one image, exchanged or not, lies as far from 0

    def mean(swapped: Array, axis: int = -1) -> Array:
        return np.round(pool.exchanged(swapped), DIGITS)

    if 2**pool.size <= RESAMPLES:
        every = np.array(list(product((0.0, 1.0), repeat=pool.size)))
        return float(np.mean(np.abs(mean(every)) >= abs(mean(every[0]))))
    from scipy.stats import monte_carlo_test

    random = np.random.default_rng(SEED)
    found = monte_carlo_test(
        np.zeros(pool.size),
        lambda size: random.integers(0, 2, size, dtype=np.int8).astype(float),
        mean,
        n_resamples=RESAMPLES,
        batch=_batch(pool),
        vectorized=True,
    )
    return float(found.pvalue)


def _batch(pool: Pool) -> int:
    return max(1, BATCH // pool.size)
