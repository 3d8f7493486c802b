"""The units that a benchmark's metric adds up, made from one run's stored answers.

Most metrics add up questions. MME adds up pairs of questions, MMBench a question in all its circulated orders
(if the set has them), and POPE's F1 is a ratio of sums. All of them are

    score = 100 x mean over strata of (sum of gained / sum of possible),

so that any resample of the units gives the metric again. Questions about one image are not independent: a model
that misreads the image errs in several. So the sums are taken once more per image, and an image with all its
questions is the unit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError
from switchkd_cli.runs.file_schemas import Answer, check

AnswerLine = dict[str, Any]
"""A line of an answers file, written by engine/evaluation."""
Array = np.ndarray


@dataclass(frozen=True)
class Units:
    """What one run gained, [units] each; the units of two runs asked the same questions stand in one order."""

    gained: Array
    possible: Array
    strata: tuple[Array, ...]
    """The indices of each stratum's units: MME's categories; one stratum for every other benchmark."""
    single: bool
    """Whether every unit is one question and possible is 1 for each."""
    images: tuple[str | None, ...] = ()
    """The image of each unit, None where there is none or it is not known; empty when no unit has one."""

    def of_images(self, images: Sequence[str | None]) -> Units:
        """The same, with the units of a stratum that show one image added up; `images` holds each unit's."""
        strata, numbers = np.empty(len(images), dtype=int), dict[object, int]()
        for place, at in enumerate(self.strata):
            strata[at] = place
        names = [image or place for place, image in enumerate(images)]
        numbered = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=int)
        found, first, to = np.unique(strata * len(numbers) + numbered, return_index=True, return_inverse=True)
        if len(found) == len(images):
            return replace(self, images=tuple(images))
        gained, possible = np.bincount(to, self.gained), np.bincount(to, self.possible)
        own = tuple(np.unique(to[at]) for at in self.strata)
        return Units(gained, possible, own, single=False, images=tuple(images[at] for at in first))

    @cached_property
    def score(self) -> float:
        """The metric, 0..100; a stratum in which nothing was possible counts as 0, as in lmms-eval's F1."""
        ratios = [ratio(self.gained[at].sum(), self.possible[at].sum()) for at in self.strata]
        return 100 * float(np.mean(ratios))


def ratio(gained: Array, possible: Array) -> Array:
    """gained / possible, and 0 where nothing was possible."""
    return np.divide(gained, possible, out=np.zeros(np.shape(gained)), where=np.asarray(possible) != 0)


def read_answers(answers: Path, task: str) -> list[AnswerLine] | None:
    """A run's answers to one benchmark, line by line; None where they were not kept. Raises UserError for broken ones."""
    file = answers / f"{task}.jsonl"
    if not file.is_file():
        return None
    lines = []
    for number, text in enumerate(file.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}:{number}: not readable as JSON: {error}") from None
        lines.append(check(Answer, line, f"{file}:{number}"))
    return lines


def units(task: str, lines: Sequence[AnswerLine]) -> Units:
    """One unit per image; a question without a known image is a unit of its own.

    Raises ValueError where the answers can't be combined into what the task's metric adds up.
    """
    made, firsts = METRICS.get(BENCHMARKS[task].task_folder, _questions)(lines)
    return made.of_images([line.get("image") for line in firsts])


Metric = Callable[[Sequence[AnswerLine]], tuple[Units, Sequence[AnswerLine]]]
"""From answers to what a metric adds up, and the first question of each unit: the others show the same image."""


def _questions(lines: Sequence[AnswerLine]) -> tuple[Units, Sequence[AnswerLine]]:
    return _one_stratum([line["score"] for line in lines]), lines


def _pairs(lines: Sequence[AnswerLine]) -> tuple[Units, Sequence[AnswerLine]]:
    """MME: half a point for each right answer of an image's pair, another whole one for both, of two possible."""
    pairs: dict[tuple[str, str], list[AnswerLine]] = {}
    counts: dict[str, int] = {}
    for line in lines:
        category = line.get("category") or line["kind"]
        place = counts[category] = counts.get(category, -1) + 1
        unit = str(line.get("unit", place // 2))  # answers written before `unit` was: pairs stand together
        pairs.setdefault((category, unit), []).append(line)
    if any(len(pair) != 2 for pair in pairs.values()):
        raise ValueError("questions of a category don't come in pairs")
    sums = np.array([sum(line["score"] for line in pair) for pair in pairs.values()])
    categories = np.array([category for category, _ in pairs])
    strata = tuple(np.flatnonzero(categories == category) for category in counts)
    gained = sums / 4 + (sums == 2) / 2
    return Units(gained, np.ones(len(gained)), strata, single=False), [pair[0] for pair in pairs.values()]


def _circles(lines: Sequence[AnswerLine]) -> tuple[Units, Sequence[AnswerLine]]:
    """MMBench: a question counts as right when it is right in every order of its options."""
    circles: dict[str, list[AnswerLine]] = {}
    for place, line in enumerate(lines):
        circles.setdefault(str(line.get("unit", place)), []).append(line)
    gained = [min(line["score"] for line in circle) for circle in circles.values()]
    return _one_stratum(gained), [circle[0] for circle in circles.values()]


def _f1(lines: Sequence[AnswerLine]) -> tuple[Units, Sequence[AnswerLine]]:
    """POPE: F1 of `yes`, 2 x true positives / (said yes + is yes), over all questions.

    As in lmms-eval, a `yes` that was answered neither yes nor no is no miss.
    """
    answers = [line["answer"].lower().strip() for line in lines]
    said = np.array([answer == "yes" for answer in answers], dtype=float)
    read = np.array([answer in ("yes", "no") for answer in answers], dtype=float)
    true = np.array([line["target"].lower().strip() == "yes" for line in lines], dtype=float)
    return Units(2 * said * true, said + true * read, (np.arange(len(said)),), single=False), lines


def _one_stratum(scores: Sequence[float]) -> Units:
    gained = np.array(scores, dtype=float)
    return Units(gained, np.ones(len(gained)), (np.arange(len(gained)),), single=True)


METRICS: dict[str, Metric] = {"mme": _pairs, "mmbench": _circles, "pope": _f1}
"""By task folder; every other metric is the mean of its questions' scores."""
