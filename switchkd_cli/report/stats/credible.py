"""Whether a score may be shown as one: it must clearly beat answering without looking."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean

from switchkd_cli.report.stats.intervals import LEVEL, standard_error

Item = tuple[int, str, str | None]
"""Place, key and image, see an answers file."""
Items = Mapping[Item, float]
"""Scores 0..1 of a benchmark's items."""


@dataclass(frozen=True)
class Difference:
    """Mean difference of two runs over the same items, in points (0..100), and its interval."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """The whole interval lies above zero."""
        return self.low > 0


def read_items(answers: Path) -> dict[Item, float]:
    """The items' scores of one answers file."""
    lines = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    return {(line["doc_id"], line["key"], line.get("image")): line["score"] for line in lines}


def paired(items: Items, baseline: Items, confidence: float = LEVEL) -> Difference:
    """`items` minus `baseline`, item by item, with the normal two-sided interval of the mean over images.

    Raises ValueError where the two don't hold the same items, or show fewer than two images.
    """
    if items.keys() != baseline.keys():
        raise ValueError("the two runs did not answer the same items")
    images = _images(items)
    if len(set(images)) < 2:
        raise ValueError("an interval needs two images or more")
    differences = [100 * (score - baseline[key]) for key, score in items.items()]
    mean = fmean(differences)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * standard_error(differences, images)
    return Difference(mean, mean - half, mean + half)


def clearly_beats(items: Items, *baselines: Items, confidence: float = LEVEL) -> bool:
    """Whether `items` lie clearly above each baseline (majority and blind); those of one image prove nothing."""
    several = len(set(_images(items))) > 1
    return several and all(paired(items, baseline, confidence).clear for baseline in baselines)


def _images(items: Items) -> list[object]:
    """The image of each item, or the item itself."""
    return [image or (place, key) for place, key, image in items]
