"""Independent calculations for the tests of differences over items."""

import numpy as np

from switchkd_cli.report.stats.significance import PairedUnits, interval


def ends_of(benchmarks) -> tuple[float, float] | None:
    """The two ends of the interval."""
    found = interval(benchmarks)
    return found and (found.low, found.high)


def gains_of(pair: PairedUnits) -> np.ndarray:
    """The rows' difference in each unit, the mean over the runs."""
    return np.mean([a.gained - b.gained for a, b in zip(pair.ours, pair.theirs, strict=True)], axis=0)


def difference_of(pair: PairedUnits) -> float:
    """In points."""
    return float(np.mean([a.score - b.score for a, b in zip(pair.ours, pair.theirs, strict=True)]))
