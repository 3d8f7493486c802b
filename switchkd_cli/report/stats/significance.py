"""Test a difference over the same items: paired bootstrap, exact and permutation tests, Holm's correction.

An image with all its questions is drawn and exchanged (see stored_answers.py). The runs are taken as trained: what
another seed would have given is the question of row_runs.py.
"""

from collections.abc import Callable, Sequence
from itertools import product
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from switchkd_cli.report.document import LEVEL, POWER, UPPER, Interval
from switchkd_cli.report.stats.stored_answers import Array, Units, ratio

ALPHA = 0.05  # below it, a p-value after Holm's correction is beyond chance
RESAMPLES = 9_999
SEED = 0
BATCH = 4_000_000  # images drawn at a time: bounds the memory
DIGITS = 12  # of a score 0..1: draws that come to the same difference are equal, in whatever order they were summed


class PairedUnits(NamedTuple):
    """One benchmark answered by two rows, a run of each for every seed paired; units are never parted.

    With several seeds a row's score is its mean over them.
    """

    ours: tuple[Units, ...]
    theirs: tuple[Units, ...]

    def binary(self) -> bool:
        """Whether there is one run a side and each unit is one question, right or wrong."""
        sides = (*self.ours, *self.theirs)
        return len(sides) == 2 and all(u.single and np.isin(u.gained, (0, 1)).all() for u in sides)


class ImagePool:
    """The images of some benchmarks; an image in several benchmarks or categories is drawn and exchanged once."""

    def __init__(self, benchmarks: Sequence[PairedUnits]) -> None:
        numbers: dict[object, int] = {}  # of each image, or unit without one
        self.strata: list[tuple[float, Array, Array]] = []
        """Of each: its weight in the mean over benchmarks, each unit's image, and its [units, (gained, possible) of each run]."""
        for place, pair in enumerate(benchmarks):
            names = pair.ours[0].images or [None] * len(pair.ours[0].gained)
            keys = [image or (place, number) for number, image in enumerate(names)]
            images = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=int)
            runs = (*pair.ours, *pair.theirs)
            sums = np.stack([column for units in runs for column in (units.gained, units.possible)], axis=-1)
            strata = [pair.ours[0].stratum == number for number in np.unique(pair.ours[0].stratum)]
            self.strata += [(1 / len(benchmarks) / len(strata), images[at], sums[at]) for at in strata]
        self.size = len(numbers)

    def sampling(self) -> dict[str, Any]:
        """How often scipy draws, and how many resamples at a time."""
        return {"n_resamples": RESAMPLES, "batch": max(1, BATCH // max(1, self.size)), "vectorized": True}

    def parts(self) -> list[Array]:
        """The images [images] of each group of strata that share some; strata without common images stay apart."""
        from scipy.cluster.hierarchy import DisjointSet

        joined = DisjointSet(range(self.size))
        for _, images, _ in self.strata:
            for image in images:
                joined.merge(images[0], image)
        return [np.array(sorted(part)) for part in joined.subsets()]

    def drawn(self, images: Array) -> Array:
        """The mean difference [...] where these images [..., n] are drawn."""
        rows = images.reshape(-1, images.shape[-1])
        flat = (rows + self.size * np.arange(len(rows))[:, None]).ravel()
        times = np.bincount(flat, minlength=self.size * len(rows)).astype(float)
        times = times.reshape(*images.shape[:-1], self.size)  # how often each image is drawn
        return self._mean(lambda of, sums: times[..., of] @ sums)

    def exchanged(self, swapped: Array) -> Array:
        """The mean difference [...] where `swapped` [..., images] is 1 for each image that the rows exchange, else 0."""

        def summed(of: Array, sums: Array) -> Array:
            change = np.roll(sums, sums.shape[-1] // 2, axis=-1) - sums
            return sums.sum(axis=0) + swapped[..., of] @ change

        return self._mean(summed)

    def _mean(self, summed: Callable[[Array, Array], Array]) -> Any:
        """The mean difference, from the sums [..., (gained, possible) of our runs, then of theirs] of each stratum."""
        mean: Any = 0.0
        for weight, images, units in self.strata:
            sums = summed(images, units)
            ours, theirs = np.split(ratio(sums[..., ::2], sums[..., 1::2]), 2, axis=-1)
            mean += weight * (ours.mean(axis=-1) - theirs.mean(axis=-1))
        return np.round(mean, DIGITS)


def interval(benchmarks: Sequence[PairedUnits]) -> Interval | None:
    """The 95 % percentile interval of the mean difference over benchmarks, in points, by a paired bootstrap.

    Its minimum detectable effect is the difference that would be found in 80 of 100 draws of as many images. Images
    are resampled within each benchmark, for MME within each category. Benchmarks or categories that share images are
    drawn together. None where a stratum has only one unit.
    """
    if any(np.bincount(pair.ours[0].stratum).min() < 2 for pair in benchmarks):
        return None
    from scipy.stats import bootstrap

    pool, scale = ImagePool(benchmarks), benchmarks[0].ours[0].scale  # several: all of them points

    def mean(*images: Array, axis: int = -1) -> Array:
        return scale * pool.drawn(np.concatenate(images, axis=-1).astype(int))

    rng = np.random.default_rng(SEED)
    drawn = bootstrap(pool.parts(), mean, confidence_level=LEVEL, method="percentile", rng=rng, **pool.sampling())
    ends, errors = drawn.confidence_interval, sum(NormalDist().inv_cdf(p) for p in (UPPER, POWER))
    return Interval(float(ends.low), float(ends.high), float(drawn.standard_error) * errors)


def p_value(benchmarks: Sequence[PairedUnits]) -> float:
    """Two-sided p-value of the hypothesis that the rows' answers can be exchanged, unit by unit.

    McNemar's exact test for one benchmark of right and wrong answers, else a permutation test of the mean
    difference over benchmarks (exact when there are few enough units).
    """
    if len(benchmarks) > 1 or not benchmarks[0].binary():
        return _permuted(benchmarks)
    from scipy.stats import binomtest

    ours, theirs = benchmarks[0].ours[0].gained, benchmarks[0].theirs[0].gained
    won, different = int(np.sum(ours > theirs)), int(np.sum(ours != theirs))
    return float(binomtest(won, different).pvalue) if different else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction for their number (Holm 1979): the smallest times n, the next times n - 1, and so on."""
    order, corrected = np.argsort(p_values), np.ones(len(p_values))
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def _permuted(benchmarks: Sequence[PairedUnits]) -> float:
    pool = ImagePool(benchmarks)
    if pool.size < 2:
        return 1.0  # one image, exchanged or not, lies as far from 0

    def mean(swapped: Array, axis: int = -1) -> Array:
        return pool.exchanged(swapped)

    if 2**pool.size <= RESAMPLES:
        every = np.array(list(product((0.0, 1.0), repeat=pool.size)))
        return float(np.mean(np.abs(mean(every)) >= abs(mean(every[0]))))
    from scipy.stats import monte_carlo_test

    random = np.random.default_rng(SEED)

    def swapped(size: tuple[int, ...]) -> Array:
        return random.integers(0, 2, size, dtype=np.int8).astype(float)

    return float(monte_carlo_test(np.zeros(pool.size), swapped, mean, **pool.sampling()).pvalue)
