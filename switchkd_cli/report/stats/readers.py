"""Read stored answers again, by another rule than the benchmark's own, to tell what is format and what is knowledge.

`stock` is the stored score. `strict` wants the right answer and nothing else; `options` looks for the one option, letter,
yes or no, or right word that an answer of several words settles on. Neither needs a model or lmms-eval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from switchkd_cli.report.stats.metric_units import AnswerLine

Reader = Literal["stock", "strict", "options"]
READERS: tuple[Reader, ...] = get_args(Reader)

OPTION = re.compile(r"^\s*\(?([A-H])[).:]\s*(.+?)\s*$", re.MULTILINE)
LETTER = re.compile(
    r"(?<![A-Za-z])\(?([A-H])(?:[).:]|(?= (?:or|and)\b)|(?![A-Za-z' ]))|\b(?:answer|option|choice)(?: is)?:? \(?([A-H])\b|\(([a-h])\)"
)
"""A letter by itself, announced, or in parentheses; not the article in "A cat"."""


def readable(lines: Sequence[AnswerLine]) -> bool:
    """Whether every line has an answer, one text as the right one, and a stored score of a single item, 0 to 1."""
    texts = (line.get(field) for line in lines for field in ("answer", "target"))
    scores = [line["score"] for line in lines]
    return all(isinstance(text, str) for text in texts) and all(of is not None and 0 <= of <= 1 for of in scores)


def score(reader: Reader, line: AnswerLine) -> float:
    """The score 0..1 of a stored answer."""
    return float(RULES[reader](line))


def reread(reader: Reader, line: AnswerLine, counted: bool) -> AnswerLine:
    """The line with its new score. Where the metric counts words (F1), also with the word that the reader finds."""
    new = line | {"score": score(reader, line)}
    if counted and reader == "options":
        named = _named(line["answer"], "", line["target"])
        new |= {"said": line["answer"], "answer": named.pop() if len(named) == 1 else ""}
    return new


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _strict(line: AnswerLine) -> bool:
    return _plain(line["answer"]) == _plain(line["target"])


def _options(line: AnswerLine) -> bool:
    """Right where what the answer settles on is the right answer; one that names several options settles on none."""
    answer, target = line["answer"], line["target"]
    named = _named(answer, str(line.get("prompt", "")), target)
    return len(named) == 1 and _plain(target).strip("(). ") in named


def _named(answer: str, prompt: str, target: str) -> set[str]:
    letter = target.strip("(). ")
    if re.fullmatch("[A-Ha-h]", letter):
        letters = {letter for found in LETTER.findall(answer) for letter in found if letter}
        options = {name: text for name, text in OPTION.findall(prompt) if _has(answer, text)}
        longest = {
            name for name, text in options.items() if not any(text != o and _has(o, text) for o in options.values())
        }
        return {name.casefold() for name in letters or longest}
    if _plain(target) in ("yes", "no"):
        return {word for word in ("yes", "no") if _has(answer, word)}
    return {_plain(target).strip("(). ")} if _has(answer, target) else set()


def _has(text: str, part: str) -> bool:
    """Whether the words of one stand in the other, in a row."""
    whole, words = (" ".join(["", *re.findall(r"\w+", each.casefold()), ""]) for each in (text, part))
    return len(words) > 1 and words in whole


RULES: Mapping[Reader, Callable[[AnswerLine], Any]] = {
    "stock": lambda line: line["score"],
    "strict": _strict,
    "options": _options,
}


def disagreement(lines: Sequence[AnswerLine]) -> tuple[int, int, int] | None:
    """Of answers by the stock rule and by options: how many only one reads as right, and all; None where they can't be read.

    A stock score between 0 and 1 counts as right from a half on.
    """
    if not lines or not readable(lines):
        return None
    each = [(line["score"] >= 0.5, _options(line)) for line in lines]
    return each.count((True, False)), each.count((False, True)), len(each)
