"""The number that lmms-eval gives for any of its tasks, and the scores of single items that it is a mean of, if it is one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any

from switchkd_cli.engine.evaluation.lmms_harness import nothing_goes_out
from switchkd_cli.errors import UserError
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.stats.metric_units import is_metric

SCORE_KEYS = ("score", "is_correct", "correct", "true_false", "acc", "accuracy", "hit", "match")
"""Under these names the tasks' records of an item hold its score."""


@dataclass(frozen=True)
class Reported:
    """A task's main metric: the first one that all items have, and that is a number."""

    about: dict[str, Any]
    """For results.json: name, direction, how it is aggregated, and the values of the task's other metrics."""
    value: float
    samples: Sequence[dict]
    scores: list[float | None]
    """On the metric's scale; None where items have no score of their own."""
    categories: Sequence[str] | None
    """Where the metric is the mean over these of the items' mean."""

    def category(self, place: int) -> dict[str, str]:
        return {"category": self.categories[place]} if self.categories else {}


def read(name: str, task: Any, outcome: Mapping[str, Any]) -> Reported:
    """Read a task's main metric from lmms-eval's result. Raises UserError where it gives no number."""
    values = {tuple(key.rsplit(",", 1)): value for key, value in outcome["results"][name].items() if "," in key}
    aggregation, higher = task.aggregation(), task.higher_is_better()
    filters = list(dict.fromkeys(way for _, way in values))
    samples = outcome["samples"][name]
    samples = samples[: len(samples) // max(1, len(filters))]  # those of one filter after another
    numbers = {
        metric: float(value)
        for (metric, way), value in values.items()
        if way == filters[0] and metric in aggregation and _is_number(value)
    }
    complete = [metric for metric in numbers if all(metric in sample for sample in samples)]
    if not complete:
        metrics = ", ".join(map(str, aggregation)) or "none"
        raise UserError(f"{name}: lmms-eval gives no number for the whole task (its metrics: {metrics})")
    metric = complete[0]
    items = [sample[metric] for sample in samples]
    scores, categories = _items(items, aggregation[metric], numbers[metric])
    about = {
        "metric": metric,
        "higher_is_better": bool(higher.get(metric, True)),
        "aggregation": getattr(aggregation[metric], "__name__", str(aggregation[metric])),
        "split": task.config.test_split or task.config.validation_split or "",
        "others": {other: value for other, value in numbers.items() if other != metric},
    }
    return Reported(about, numbers[metric], samples, scores, categories)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _items(items: Sequence[Any], aggregate: Callable, value: float) -> tuple[list[float | None], list[str] | None]:
    """The items' scores, and their categories where only the mean over these is the metric; no scores where neither is."""
    if (single := _scores(items, aggregate)) is None:
        return [None] * len(items), None
    records = [item if isinstance(item, dict) else {} for item in items]
    ways: list[list[str] | None] = [None]
    for key in records[0]:
        column = [record.get(key) for record in records]
        if all(isinstance(each, str) for each in column) and len(set(column)) < len(column):
            ways.append([str(each) for each in column])
    factors = (1.0, 100.0, len(items), len(items) / 1000)  # a share, per cent, a sum; OCRBench's, of a thousand
    for categories in ways:
        mean = fmean(map(fmean, grouped(zip(categories or [""] * len(single), single, strict=True)).values()))
        for factor in factors:
            if is_metric(factor * mean, value):
                return [factor * score for score in single], categories
    return [None] * len(items), None


def _scores(items: Sequence[Any], aggregate: Callable) -> list[float] | None:
    """A score for each item: itself, what its record holds, or what the task's own rule gives for it alone."""
    if all(_is_number(item) for item in items):
        return [float(item) for item in items]
    for key in SCORE_KEYS:
        if all(isinstance(item, dict) and _is_number(item.get(key)) for item in items):
            return [float(item[key]) for item in items]
    if "args" in inspect.signature(aggregate).parameters:
        return None  # such a rule writes files, and some read an earlier file again instead of the item
    try:
        with nothing_goes_out():
            alone = [aggregate([item]) for item in items]
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError):
        return None  # a rule for whole sets may fail in many ways on a single item
    return [float(score) for score in alone] if all(map(_is_number, alone)) else None
