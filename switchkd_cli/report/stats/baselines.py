"""Which benchmarks count: those where the teacher clearly beats answering without looking; rows that always say yes or no."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from switchkd_cli.benchmarks import Benchmark
from switchkd_cli.files.atomic import json_lines
from switchkd_cli.report.document import UPPER, Number
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.stats.stored_answers import AnswerLine

BASELINES: dict[str, str] = {"majority": "the majority answer", "blind": "itself without the image"}
"""Field of the teacher's results -> what the teacher has to beat."""

Item = tuple[int, str, str | None]
"""Place, key and image of a line of an answers file."""
Items = Mapping[Item, float]
"""Scores 0..1 of a benchmark's items."""


def with_verdict(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results `{"teacher":…, "majority":…, "blind":…}` and, under "not_beaten", the verdict by task.

    A task's verdict names the baselines that the teacher does not clearly beat: its items do not lie clearly
    above theirs, or its score is no higher (F1 can favour a constant that is often wrong). The answers are
    read from `folder`/<field>/answers/<task>.jsonl. Without a teacher there is no verdict.
    """

    def beats(name: str, task: str) -> bool:
        ours, theirs = (results[who]["scores"][task]["score"] for who in ("teacher", name))
        if not results["teacher"]["scores"][task].get("higher_is_better", True):
            return ours < theirs  # no test: its items count the other way round, and it is in no average
        items = [read_items(folder / who / "answers" / f"{task}.jsonl") for who in ("teacher", name)]
        if any(score is None for of in items for score in of.values()):
            return ours > theirs  # its metric has no score of single items
        return ours > theirs and clearly_beats(*items)

    teacher = results["teacher"]["scores"] if "teacher" in results else ()
    verdict = {task: [name for name in BASELINES if name in results and not beats(name, task)] for task in teacher}
    return {**results, "not_beaten": {task: names for task, names in verdict.items() if names}}


def read_items(answers: Path) -> dict[Item, float]:
    """The items' scores from one answers file. Questions that count together, as a pair does, are one item."""
    lines = json_lines(answers)
    # MME's units, which have a category, are half right where one of two answers is
    numbered = enumerate(lines)
    units = grouped((n if "category" in line else line.get("unit", n), line) for n, line in numbered).values()
    first = [(unit[0]["doc_id"], unit[0]["key"], unit[0].get("image")) for unit in units]
    return dict(zip(first, (min(line["score"] for line in unit) for unit in units), strict=True))


def clearly_beats(items: Items, *baselines: Items) -> bool:
    """Whether `items` lie clearly above each baseline (majority and blind); items of one image prove nothing."""
    return len(set(_images(items))) > 1 and all(minus(items, baseline).side == 1 for baseline in baselines)


def minus(items: Items, baseline: Items) -> Number:
    """Mean of `items` minus `baseline`, item by item, in points, with the normal interval of the mean over images.

    Raises ValueError where the two don't hold the same items, or show fewer than two images.
    """
    if items.keys() != baseline.keys():
        raise ValueError("the two runs did not answer the same items")
    images = _images(items)
    if len(set(images)) < 2:
        raise ValueError("an interval needs two images or more")
    differences = [100 * (score - baseline[key]) for key, score in items.items()]
    half = NormalDist().inv_cdf(UPPER) * standard_error(differences, images)
    return Number(fmean(differences), half, len(items), difference=True)


def standard_error(values: Sequence[float], images: Sequence[Hashable]) -> float:
    """The standard error of the mean of two or more values; those of one image are drawn together.

    The variance of independent values plus what the values of one image have in common (Miller 2024, equation 4).
    """
    mean, count = fmean(values), len(values)
    by_image = grouped((image, value - mean) for value, image in zip(values, images, strict=True))
    alone = sum(d * d for of in by_image.values() for d in of)
    together = sum(sum(of) ** 2 for of in by_image.values())
    return sqrt(alone / (count * (count - 1)) + (together - alone) / count**2)


def _images(items: Items) -> list[object]:
    """The image of each item, or the item itself."""
    return [image or (place, key) for place, key, image in items]


OTHER = {"yes": "no", "no": "yes"}
NEARLY_ALL = 95
"""Per cent of a row's readable answers: with one word that often it is named. About half of the right ones are "yes"."""


def yes_no(row: Benchmark, lines: Sequence[AnswerLine]) -> dict[str, Any]:
    """Return `yes` and `no`, the answers that say so, and `accuracy`, 0..100, where the score counts one word only.

    Nothing for other questions. The counts need the lines' `faults`, which answers read by another reader lack.
    """
    if row.asks != "yes-no" or not lines:
        return {}
    said = Counter(map(_said, lines)) if all("faults" in line for line in lines) else None
    accuracy = {"accuracy": 100 * fmean(line["score"] for line in lines)} if row.counted else {}
    return accuracy | ({word: said[word] for word in OTHER} if said else {})


def _said(line: AnswerLine) -> str | None:
    """The word that the stock rule reads in an answer: the right one or the other; None where it reads neither."""
    right = str(line.get("target")).lower().strip(" .")
    if line["score"]:
        return right
    return None if {"unreadable", "empty"} & set(line["faults"]) else OTHER.get(right)
