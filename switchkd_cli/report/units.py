"""The units that a benchmark's metric adds up, made from one run's stored answers.

Most metrics add up questions. MME adds up pairs of questions, MMBench a question in all its circulated orders
(if the set has them), and POPE's F1 is a ratio of sums. All of them are

    score = 100 x mean over strata of (sum of gained / sum of possible),

so that any resample of the units gives the metric again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from switchkd_cli.errors import UserError
from switchkd_cli.protocol import BENCHMARKS
from switchkd_cli.records import Answer, check

Line = Mapping[str, Any]
"""A line of an answers file, see engine/evaluate.py."""
Array = np.ndarray

NEAR = 0.01  # points; lmms-eval rounds MMMU's accuracy to five places


@dataclass(frozen=True)
class Units:
    """What one run gained, [units] each; the units of two runs asked the same questions stand in one order."""

    gained: Array
    possible: Array
    strata: tuple[Array, ...]
    """The places of each stratum's units: MME's categories; one stratum for every other benchmark."""
    single: bool
    """Whether every unit is one question and possible is 1 for each."""

    @cached_property
    def score(self) -> float:
        """The metric, 0..100; a stratum in which nothing was possible counts as 0, as in lmms-eval's F1."""
        return 100 * float(
            np.mean([ratio(self.gained[at].sum(), self.possible[at].sum()) for at in self.strata])
        )


def ratio(gained: Array, possible: Array) -> Array:
    """gained / possible, and 0 where nothing was possible."""
    return np.divide(gained, possible, out=np.zeros(np.shape(gained)), where=np.asarray(possible) != 0)


def read_answers(answers: Path, task: str) -> list[dict[str, Any]] | None:
    """The lines of a run's answers to one benchmark; None where they were not kept. Raises UserError for broken ones."""
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


def units(task: str, lines: Sequence[Line]) -> Units:
    """Raises ValueError where the answers can't be put together to the task's units."""
    return RULES.get(BENCHMARKS[task].task_folder, _questions)(lines)


def _questions(lines: Sequence[Line]) -> Units:
    scores = np.array([line["score"] for line in lines], dtype=float)
    return Units(scores, np.ones(len(scores)), (np.arange(len(scores)),), single=True)


def _pairs(lines: Sequence[Line]) -> Units:
    """MME: half a point for each right answer of a picture's pair, a whole one more for both, of two possible."""
    pairs: dict[tuple[str, str], list[float]] = {}
    seen: dict[str, int] = {}
    for line in lines:
        category = line.get("category") or line["kind"]
        place = seen[category] = seen.get(category, -1) + 1
        unit = str(line.get("unit", place // 2))  # answers written before `unit` was: pairs stand together
        pairs.setdefault((category, unit), []).append(line["score"])
    if any(len(scores) != 2 for scores in pairs.values()):
        raise ValueError("questions of a category don't come in pairs")
    gained = np.array([sum(scores) / 4 + (sum(scores) == 2) / 2 for scores in pairs.values()])
    of = np.array([category for category, _ in pairs])
    return Units(gained, np.ones(len(gained)), tuple(np.flatnonzero(of == c) for c in seen), single=False)


def _circles(lines: Sequence[Line]) -> Units:
    """MMBench: a question is right when it is in every order of its options."""
    circles: dict[str, list[float]] = {}
    for place, line in enumerate(lines):
        circles.setdefault(str(line.get("unit", place)), []).append(line["score"])
    gained = np.array([min(scores) for scores in circles.values()])
    return Units(gained, np.ones(len(gained)), (np.arange(len(gained)),), single=True)


def _f1(lines: Sequence[Line]) -> Units:
    """POPE: F1 of `yes`, 2 x true positives / (said yes + is yes), over all questions.

    As in lmms-eval, a `yes` that was answered neither yes nor no is no miss.
    """
    answers = [line["answer"].lower().strip() for line in lines]
    said = np.array([answer == "yes" for answer in answers], dtype=float)
    read = np.array([answer in ("yes", "no") for answer in answers], dtype=float)
    true = np.array([line["target"].lower().strip() == "yes" for line in lines], dtype=float)
    return Units(2 * said * true, said + true * read, (np.arange(len(said)),), single=False)


RULES: dict[str, Callable[[Sequence[Line]], Units]] = {"mme": _pairs, "mmbench": _circles, "pope": _f1}
"""By task folder; every other metric is the mean of its questions' scores."""
