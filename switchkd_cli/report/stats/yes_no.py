"""What a row says to yes-or-no questions: how often each word, and its accuracy where the score is F1.

F1 counts only "yes", so it moves with how often a row says it: a row that always does gets 66.7 of POPE, whatever it knows.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from switchkd_cli.benchmarks import Benchmark
from switchkd_cli.report.stats.metric_units import AnswerLine

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
