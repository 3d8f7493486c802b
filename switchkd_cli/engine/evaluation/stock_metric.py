"""The number that lmms-eval gives for any of its tasks, and the scores of single items that it is a mean of, if it is one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from switchkd_cli.engine.evaluation.lmms_harness import nothing_goes_out
from switchkd_cli.errors import UserError
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.stats.stored_answers import is_metric

SCORE_KEYS = ("score", "is_correct", "correct", "true_false", "acc", "accuracy", "hit", "match")
"""Under these names the tasks' records of an item hold its score."""


def read(name: str, task: Any, outcome: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict], list[dict]]:
    """Return a task's main metric, the first one that is a number and that all items have; its samples; what each scored.

    The metric is an entry of results.json. Each sample has a `score` on the metric's scale, None where that is no mean of
    items, and a `category` where it is the mean over these of their items' mean. Raises UserError where there is no number.
    """
    values = {tuple(key.rsplit(",", 1)): value for key, value in outcome["results"][name].items() if "," in key}
    aggregation = task.aggregation()
    filters = list(dict.fromkeys(way for _, way in values))
    samples = outcome["samples"][name]
    samples = samples[: len(samples) // max(1, len(filters))]  # those of one filter after another
    first = {metric: value for (metric, way), value in values.items() if way == filters[0]}
    numbers = {metric: float(of) for metric, of in first.items() if metric in aggregation and _is_number(of)}
    metric = next((metric for metric in numbers if all(metric in sample for sample in samples)), None)
    if metric is None:
        metrics = ", ".join(map(str, aggregation)) or "none"
        raise UserError(f"{name}: lmms-eval gives no number for the whole task (its metrics: {metrics})")
    entry = {
        "score": numbers.pop(metric),
        "metric": metric,
        "higher_is_better": bool(task.higher_is_better().get(metric, True)),
        "split": task.config.test_split or task.config.validation_split or "",
        "others": numbers,
    }
    return entry, samples, _items([sample[metric] for sample in samples], aggregation[metric], entry["score"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _items(items: Sequence[Any], aggregate: Callable, value: float) -> list[dict[str, Any]]:
    """Return the items' scores, with their categories where only the mean over these gives the metric's value."""
    scores = _scores(items, aggregate)
    records = items if all(isinstance(item, dict) for item in items) else []
    columns = [[record.get(key) for record in records] for key in (records[0] if records else ())]
    repeated = [each for each in columns if all(isinstance(word, str) for word in each) and len(set(each)) < len(each)]
    factors = (1.0, 100.0, len(items), len(items) / 1000)  # a share, per cent, a sum; OCRBench's, of a thousand
    for categories in ([""] * len(items), *repeated) if scores else ():
        mean = fmean(map(fmean, grouped(zip(categories, scores, strict=True)).values()))
        for factor in factors:
            if is_metric(factor * mean, value):
                named = [{"category": category} if category else {} for category in categories]
                return [{"score": factor * score, **of} for score, of in zip(scores, named, strict=True)]
    return [{"score": None}] * len(items)


def _scores(items: Sequence[Any], aggregate: Callable) -> list[float]:
    """A score for each item: itself, what its record holds, or what the task's own rule gives for it alone; else nothing."""
    if all(_is_number(item) for item in items):
        return [float(item) for item in items]
    for key in SCORE_KEYS:
        if all(isinstance(item, dict) and _is_number(item.get(key)) for item in items):
            return [float(item[key]) for item in items]
    if "args" in inspect.signature(aggregate).parameters:
        return []  # such a rule writes files, and some read an earlier file again instead of the item
    try:
        with nothing_goes_out():
            alone = [aggregate([item]) for item in items]
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError):
        return []  # a rule for whole sets may fail in many ways on a single item
    return [float(score) for score in alone] if all(map(_is_number, alone)) else []
