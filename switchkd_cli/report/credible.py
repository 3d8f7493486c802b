"""Whether a score may be shown as one: it must clearly beat answering without looking."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean, stdev

Items = Mapping[tuple[int, str], float]
"""Scores 0..1 of a benchmark's items, by place and key (see an answers file)."""


@dataclass(frozen=True)
class Difference:
    """Mean difference of two runs over the same items, in points (0..100), and its interval."""

    mean: float
    low: float
    high: float
    items: int

    @property
    def clear(self) -> bool:
        """The whole interval lies above zero."""
        return self.low > 0


def read_items(answers: Path) -> dict[tuple[int, str], float]:
    """The items' scores of one answers file."""
    lines = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    return {(line["doc_id"], line["key"]): line["score"] for line in lines}


def paired(items: Items, baseline: Items, confidence: float = 0.95) -> Difference:
    """`items` minus `baseline`, item by item, with the normal two-sided interval of the mean.

    Raises ValueError where the two don't hold the same items, or fewer than two.
    """
    if items.keys() != baseline.keys():
        raise ValueError("the two runs did not answer the same items")
    if len(items) < 2:
        raise ValueError(f"an interval needs two items or more, got {len(items)}")
    differences = [100 * (score - baseline[key]) for key, score in items.items()]
    mean = fmean(differences)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * stdev(differences) / sqrt(len(differences))
    return Difference(mean, mean - half, mean + half, len(differences))


def clearly_beats(items: Items, *baselines: Items, confidence: float = 0.95) -> bool:
    """Whether `items` lie clearly above each baseline (majority and blind)."""
    return all(paired(items, baseline, confidence).clear for baseline in baselines)
