"""A run's stored answers to one benchmark: the units that its metric adds up, and the answers read by another rule.

Most metrics add up questions. MME adds up pairs of questions, MMVP a question about two images, MMBench a question in all
its circulated orders (if the set has them), and POPE's F1 is a ratio of sums. All of them are

    score = 100 x mean over strata of (sum of gained / sum of possible),

so that any resample of the units gives the metric again. Questions about one image are not independent: a model
that misreads the image errs in several. So the sums are taken once more per image, and an image with all its
questions is the unit.

Another reader than the benchmark's own tells what is format and what is knowledge. `stock` is the stored score. `strict`
wants the right answer and nothing else; `options` looks for the one option, letter, yes or no, or right word that an answer
of several words settles on. None of them needs a model or lmms-eval.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from switchkd_cli.benchmarks import BENCHMARKS, NAMES
from switchkd_cli.files.atomic import json_lines
from switchkd_cli.report.grouping import grouped
from switchkd_cli.runs.file_schemas import Answer, check

AnswerLine = dict[str, Any]
"""A line of an answers file, written by engine/evaluation."""
Array = np.ndarray
Reader = Literal["stock", "strict", "options"]
READERS: tuple[Reader, ...] = get_args(Reader)
OPTION = re.compile(r"^\s*\(?([A-H])[).:]\s*(.+?)\s*$", re.MULTILINE)
LETTER = re.compile(
    r"(?<![A-Za-z])\(?([A-H])(?:[).:]|(?= (?:or|and)\b)|(?![A-Za-z' ]))"
    r"|\b(?:answer|option|choice)(?: is)?:? \(?([A-H])\b"
    r"|\(([a-h])\)"
)
"""A letter by itself, announced, or in parentheses; not the article in "A cat"."""


@dataclass(frozen=True)
class Units:
    """What one run gained, [units] each; the units of two runs asked the same questions stand in one order."""

    gained: Array
    possible: Array
    stratum: Array
    """The number of each unit's stratum, from 0: MME's categories; one stratum for every other benchmark."""
    single: bool
    """Whether every unit is one question and possible is 1 for each."""
    images: tuple[str | None, ...] = ()
    """The image of each unit, None where there is none or it is not known; empty when no unit has one."""
    scale: float = 100.0
    """From the mean to the score: 1 for a stock task, whose gains are on lmms-eval's own scale."""

    def of_images(self, images: Sequence[str | None]) -> Self:
        """The same, with the units of a stratum that show one image added up; `images` holds each unit's."""
        numbers = dict[object, int]()
        names = [image or place for place, image in enumerate(images)]
        numbered = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=int)
        _, first, to = np.unique(self.stratum * len(numbers) + numbered, return_index=True, return_inverse=True)
        if len(first) == len(images):
            return replace(self, images=tuple(images))
        gained, possible = np.bincount(to, self.gained), np.bincount(to, self.possible)
        shown = tuple(images[at] for at in first)
        return replace(self, gained=gained, possible=possible, stratum=self.stratum[first], single=False, images=shown)

    @cached_property
    def score(self) -> float:
        """The metric, 0..100 or of a stock task lmms-eval's; a stratum in which nothing was possible counts as 0, as in lmms-eval's F1."""
        gained, possible = (np.bincount(self.stratum, of) for of in (self.gained, self.possible))
        return self.scale * float(ratio(gained, possible).mean())


def ratio(gained: Array, possible: Array) -> Array:
    """gained / possible, and 0 where nothing was possible."""
    return np.divide(gained, possible, out=np.zeros(np.shape(gained)), where=np.asarray(possible) != 0)


def is_metric(mean: float, value: float) -> bool:
    """Whether a mean is the number that a stock task gives; some round it to two places of per cent, or four of a share."""
    return abs(mean - value) <= (0.006 if abs(value) > 1 else 0.00006)


def read_answers(answers: Path, task: str) -> list[AnswerLine] | None:
    """A run's answers to one benchmark, line by line; None where they were not kept. Raises UserError for broken ones."""
    file = answers / f"{task}.jsonl"
    if not file.is_file():
        return None
    return [check(Answer, line, f"{file}:{number}") for number, line in enumerate(json_lines(file), 1)]


def units(name: str, lines: Sequence[AnswerLine]) -> Units:
    """One unit per image; a question without a known image is a unit of its own. `name` is one of `benchmarks.NAMES`.

    Raises ValueError where the answers can't be combined into what the task's metric adds up.
    """
    if name not in NAMES:
        categories = [line["category"] for line in lines] if all(line.get("category") for line in lines) else None
        scale = 100.0 if BENCHMARKS[name].in_points else 1.0
        return _units([line["score"] for line in lines], lines, categories=categories, scale=scale)
    folder = BENCHMARKS[name].task_folder if name in BENCHMARKS else ""  # an accuracy is a mean of questions
    return METRICS.get(folder, _questions)(lines)


def _questions(lines: Sequence[AnswerLine]) -> Units:
    """The score of each question; it counts as right when it is right in every order of its options, on both images."""
    circles = grouped((str(line.get("unit", place)), line) for place, line in enumerate(lines)).values()
    return _units([min(line["score"] for line in circle) for circle in circles], [circle[0] for circle in circles])


def _pairs(lines: Sequence[AnswerLine]) -> Units:
    """MME: half a point for each right answer of an image's pair, another whole one for both, of two possible."""
    pairs = grouped(((line["category"], str(line["unit"])), line) for line in lines)
    if any(len(pair) != 2 for pair in pairs.values()):
        raise ValueError("questions of a category don't come in pairs")
    sums = np.array([sum(line["score"] for line in pair) for pair in pairs.values()])
    firsts = [pair[0] for pair in pairs.values()]
    return _units(sums / 4 + (sums == 2) / 2, firsts, categories=[category for category, _ in pairs])


def _f1(lines: Sequence[AnswerLine]) -> Units:
    """POPE: F1 of `yes`, 2 x true positives / (said yes + is yes), over all questions.

    As in lmms-eval, a `yes` that was answered neither yes nor no is no miss.
    """
    answers = [line["answer"].lower().strip() for line in lines]
    said = np.array([answer == "yes" for answer in answers], dtype=float)
    read = np.array([answer in ("yes", "no") for answer in answers], dtype=float)
    true = np.array([line["target"].lower().strip() == "yes" for line in lines], dtype=float)
    return _units(2 * said * true, lines, possible=said + true * read)


def _units(
    gained: Any, firsts: Sequence[AnswerLine], *, possible: Any = None, categories: Any = None, scale: float = 100.0
) -> Units:
    """Units of one image each. `firsts` are the first question of each unit; its others show the same image, or its partner."""
    _, stratum = np.unique(categories or [""] * len(gained), return_inverse=True)
    single = possible is None and categories is None
    possible = np.ones(len(gained)) if possible is None else possible
    made = Units(np.array(gained, dtype=float), possible, stratum, single, scale=scale)
    return made.of_images([line.get("image") for line in firsts])


METRICS: dict[str, Callable[[Sequence[AnswerLine]], Units]] = {"mme": _pairs, "pope": _f1}
"""By task folder; every other metric is the mean of its questions' scores."""


def readable(lines: Sequence[AnswerLine]) -> bool:
    """Whether there are lines, and each has an answer, one text as the right one, and a score of its own, 0 to 1.

    A score that is a rank among `nats` is none of the answer.
    """
    texts = all(isinstance(line.get(field), str) for line in lines for field in ("answer", "target"))
    scored = all(line["score"] is not None and 0 <= line["score"] <= 1 and "nats" not in line for line in lines)
    return bool(lines) and texts and scored


def reread(reader: Reader, line: AnswerLine, *, counted: bool = False) -> AnswerLine:
    """The line with its new score, 0 to 1. Where the metric counts words (F1), also with the word that the reader finds.

    Its `faults` are left out: what could not be read is what the stock rule could not.
    """
    line = {field: value for field, value in line.items() if field != "faults"}
    if reader == "stock":
        return line
    if reader == "strict":
        return line | {"score": float(plain(line["answer"]) == plain(line["target"]))}
    named = _named(line)
    settled = named.pop() if len(named) == 1 else ""  # an answer that names several options settles on none
    new = line | {"score": float(settled != "" and settled == _bare(line["target"]))}
    return new | {"said": line["answer"], "answer": settled} if counted else new


def disagreement(lines: Sequence[AnswerLine]) -> str:
    """How many answers only the stock rule, and how many only `options` reads as right; empty where none can be told.

    A stock score between 0 and 1 counts as right from a half on.
    """
    if not readable(lines):
        return ""
    each = [(line["score"] >= 0.5, reread("options", line)["score"] == 1) for line in lines]
    stock, options = each.count((True, False)), each.count((False, True))
    return f"{stock:,} and {options:,} of {len(each):,}" if stock or options else ""


def plain(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.casefold().split())


def _bare(text: str) -> str:
    return plain(text).strip("(). ")


def _named(line: AnswerLine) -> set[str]:
    """The options that an answer names, as `_bare` has them: letters, yes and no, or in an open question the right answer."""
    answer, right = line["answer"], _bare(line["target"])
    if re.fullmatch("[a-h]", right):
        letters = {letter for found in LETTER.findall(answer) for letter in found if letter}
        texts = {letter: text for letter, text in OPTION.findall(str(line.get("prompt"))) if _has(answer, text)}
        # "fire fly" names no option "fly"
        every = texts.values()
        longest = {a for a, text in texts.items() if not any(text != each and _has(each, text) for each in every)}
        return {letter.casefold() for letter in letters or longest}
    words = ("yes", "no") if right in ("yes", "no") else (right,)
    return {word for word in words if _has(answer, word)}


def spaced_words(text: str) -> str:
    """The words of a text in lower case, a space around each: words in a row are a part of it, parts of words are not."""
    return " ".join(["", *re.findall(r"\w+", text.casefold()), ""])


def _has(text: str, part: str) -> bool:
    """Whether the words of one stand in the other, in a row."""
    whole, words = spaced_words(text), spaced_words(part)
    return len(words) > 1 and words in whole
