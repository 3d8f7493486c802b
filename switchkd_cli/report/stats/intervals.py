"""Means over seeds with 95 % intervals, paired differences, and standard errors over images."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from math import sqrt
from statistics import fmean, stdev

from switchkd_cli.report.document import Number
from switchkd_cli.report.grouping import grouped

LEVEL = 0.95
UPPER = (1 + LEVEL) / 2
POWER = 0.8


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


def standard_error(values: Sequence[float], images: Sequence[Hashable]) -> float:
    """The standard error of the mean of two or more values; those of one image are drawn together.

    The variance of independent values plus what the values of one image have in common (Miller 2024, equation 4).
    """
    mean, count = fmean(values), len(values)
    by_image = grouped((image, value - mean) for value, image in zip(values, images, strict=True))
    alone = sum(d * d for of in by_image.values() for d in of)
    together = sum(sum(of) ** 2 for of in by_image.values())
    return sqrt(alone / (count * (count - 1)) + (together - alone) / count**2)


@cache
def _standard_errors(freedom: int) -> tuple[float, float]:
    """Half of a mean's interval and its minimum detectable effect, in standard errors, by degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    half = float(t.ppf(UPPER, freedom))
    return half, brentq(lambda effect: nct.sf(half, freedom, effect) - POWER, 0, 10 * half)
