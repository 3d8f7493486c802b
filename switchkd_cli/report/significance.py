"""Is a difference over the same items more than chance: paired bootstrap, exact and permutation tests, Holm.

The runs are taken as they are: what another seed would have trained is statistics.py's question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from switchkd_cli.report.statistics import LEVEL
from switchkd_cli.report.units import Array, Units, ratio

RESAMPLES = 9_999
SEED = 0
BATCH = 4_000_000  # units drawn at a time: bounds the memory


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

    def measure(self) -> Callable[[Array], Array]:
        """From places [..., n] of one stratum's units to its difference [...].

        Place p below `size` is unit p with the rows as they are, `size` + p the same unit with the rows swapped.
        """
        if all((u.possible == 1).all() for u in (*self.ours, *self.theirs)):
            gains = np.mean(
                [a.gained - b.gained for a, b in zip(self.ours, self.theirs, strict=True)], axis=0
            )
            signed = np.concatenate((gains, -gains))
            return lambda at: signed[at].mean(axis=-1)
        sides = [
            [
                (np.concatenate((a.gained, b.gained)), np.concatenate((a.possible, b.possible)))
                for a, b in pairs
            ]
            for pairs in (
                list(zip(self.ours, self.theirs, strict=True)),
                list(zip(self.theirs, self.ours, strict=True)),
            )
        ]

        def difference(at: Array) -> Array:
            ours, theirs = (
                np.mean([ratio(g[at].sum(axis=-1), p[at].sum(axis=-1)) for g, p in side], axis=0)
                for side in sides
            )
            return ours - theirs

        return difference


def interval(benchmarks: Sequence[Paired]) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean difference over benchmarks, in points, by a paired bootstrap.

    Units are resampled within each benchmark, for MME within each category. None where a stratum has one
    unit only.
    """
    if any(len(at) < 2 for pair in benchmarks for at in pair.strata):
        return None
    from scipy.stats import bootstrap

    measured = [(pair.measure(), len(pair.strata)) for pair in benchmarks]

    def mean(*places: Array, axis: int = -1) -> Array:
        rest, each = iter(places), []
        for measure, strata in measured:
            each.append(np.mean([measure(np.asarray(next(rest), dtype=int)) for _ in range(strata)], axis=0))
        return 100 * np.mean(each, axis=0)

    found = bootstrap(
        [at for pair in benchmarks for at in pair.strata],
        mean,
        n_resamples=RESAMPLES,
        batch=_batch(benchmarks),
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


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
    if sum(pair.size for pair in benchmarks) < 2:
        return 1.0  # one unit, exchanged or not, lies as far from 0; scipy asks for two
    from scipy.stats import permutation_test

    sizes = [pair.size for pair in benchmarks]
    starts = np.cumsum([0, *sizes])
    measured = [(pair.measure(), pair.strata, start) for pair, start in zip(benchmarks, starts, strict=False)]
    swapped = [pair.size for pair in benchmarks for _ in range(pair.size)]

    def mean(kept: Array, _other: Array, axis: int = -1) -> Array:
        kept = np.asarray(kept, dtype=int)
        each = [
            np.mean([measure(kept[..., start + at]) for at in strata], axis=0)
            for measure, strata, start in measured
        ]
        return np.mean(each, axis=0)

    own = np.concatenate([np.arange(size) for size in sizes])
    found = permutation_test(
        (own, own + np.array(swapped)),
        mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_batch(benchmarks),
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def _batch(benchmarks: Sequence[Paired]) -> int:
    return max(1, BATCH // sum(pair.size for pair in benchmarks))
