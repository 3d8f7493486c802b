"""Means over seeds with 95 % intervals, and paired differences; the standard error of a mean over images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from statistics import fmean, stdev

LEVEL = 0.95
UPPER = (1 + LEVEL) / 2
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean over `seeds` values and half of its Student-t interval (None with one value)."""

    mean: float
    interval: float | None
    seeds: int
    deviation: float | None = None
    """Standard deviation over the seeds."""
    detectable: float | None = None
    """Minimum detectable effect: the true mean that as many seeds tell from 0 in 80 of 100 cases."""


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """The mean of one value a seed and its 95 % t interval; None without a value."""
    if not values:
        return None
    mean, count = fmean(values), len(values)
    if count < 2:
        return Estimate(mean, None, count)
    deviation = stdev(values)
    half, detectable = (errors * deviation / sqrt(count) for errors in _standard_errors(count - 1))
    return Estimate(mean, half, count, deviation, detectable)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The mean of ours minus theirs over the seeds that both have; None when they share none.

    Pairing takes out what a seed does to both: the initialisation and the order of the data.
    """
    return over_seeds([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def standard_error(values: Sequence[float], images: Sequence[Hashable]) -> float:
    """Of the mean of two or more values; those of one image are drawn together.

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
    """Half of the interval of a mean with so many degrees of freedom, and its minimum detectable effect."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    half = float(t.ppf(UPPER, freedom))
    return half, float(brentq(lambda effect: nct.sf(half, freedom, effect) - POWER, 0, 3 * half))
