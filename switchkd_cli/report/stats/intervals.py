"""Means over seeds with 95 % intervals, paired differences, and the one rule for "more than chance"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from statistics import fmean, stdev
from typing import Literal

LEVEL = 0.95
UPPER = (1 + LEVEL) / 2
POWER = 0.8


def side(low: float, high: float) -> Literal[-1, 0, 1]:
    """1 or -1 where an interval lies above or below 0 as a whole; 0 where it includes 0: not more than chance.

    Every verdict over seeds or over items, in tables, reports and on the teacher, is this one.
    """
    return 1 if low > 0 else -1 if high < 0 else 0


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values (seeds, or items) and half of its interval (None with one value)."""

    mean: float
    interval: float | None
    count: int
    deviation: float | None = None
    """Standard deviation over the seeds."""
    detectable: float | None = None
    """Minimum detectable effect: the true mean that as many seeds tell from 0 in 80 of 100 cases."""

    @property
    def low(self) -> float:
        return self.mean - (self.interval or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.interval or 0.0)

    @property
    def side(self) -> Literal[-1, 0, 1]:
        """See `side`; 0 without an interval."""
        return 0 if self.interval is None else side(self.low, self.high)


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """The mean of one value per seed and its 95 % Student-t interval; None without a value."""
    if not values:
        return None
    mean, count = fmean(values), len(values)
    if count < 2:
        return Estimate(mean, None, count)
    deviation = stdev(values)
    half, detectable = (errors * deviation / sqrt(count) for errors in _standard_errors(count - 1))
    return Estimate(mean, half, count, deviation, detectable)


def paired_difference(ours: Mapping[int | None, float], theirs: Mapping[int | None, float]) -> Estimate | None:
    """The mean of ours minus theirs over the seeds that both have; None when they share none.

    Pairing removes what a seed does to both: the initialisation and the order of the data.
    """
    return over_seeds([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def standard_error(values: Sequence[float], images: Sequence[Hashable]) -> float:
    """The standard error of the mean of two or more values; those of one image are drawn together.

    The variance of independent values plus what the values of one image have in common (Miller 2024, equation 4).
    """
    mean, count = fmean(values), len(values)
    by_image: dict[Hashable, list[float]] = defaultdict(list)
    for value, image in zip(values, images, strict=True):
        by_image[image].append(value - mean)
    alone = sum(d * d for of in by_image.values() for d in of)
    together = sum(sum(of) ** 2 for of in by_image.values())
    return sqrt(alone / (count * (count - 1)) + (together - alone) / count**2)


@cache
def _standard_errors(freedom: int) -> tuple[float, float]:
    """Half of a mean's interval and its minimum detectable effect, in standard errors, by degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    half = float(t.ppf(UPPER, freedom))
    return half, float(brentq(lambda effect: nct.sf(half, freedom, effect) - POWER, 0, 3 * half))
