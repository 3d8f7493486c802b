"""Means over seeds with 95 % intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `seeds` values and half of its Student-t interval (None with one value)."""

    mean: float
    interval: float | None
    seeds: int
    deviation: float | None = None
    """Standard deviation over the seeds."""


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """The mean of one value a seed and its 95 % t interval; None without a value."""
    if not values:
        return None
    deviation = stdev(values) if len(values) > 1 else None
    return Estimate(fmean(values), _half(values), len(values), deviation)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The mean of ours minus theirs over the seeds that both have; None when they share none.

    Pairing takes out what a seed does to both: the initialisation and the order of the data.
    """
    return over_seeds([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def _half(values: Sequence[float]) -> float | None:
    count = len(values)
    if count < 2:
        return None
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / count**0.5
