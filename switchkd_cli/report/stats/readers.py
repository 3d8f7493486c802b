"""Read stored answers again, by another rule than the benchmark's own, to tell what is format and what is knowledge.

`stock` is the stored score. `strict` wants the right answer and nothing else; `options` looks for the one option, letter,
yes or no, or right word that an answer of several words settles on. Neither needs a model or lmms-eval.
"""

import re
from collections.abc import Sequence
from typing import Literal, get_args

from switchkd_cli.report.stats.metric_units import AnswerLine

Reader = Literal["stock", "strict", "options"]
READERS: tuple[Reader, ...] = get_args(Reader)

OPTION = re.compile(r"^\s*\(?([A-H])[).:]\s*(.+?)\s*$", re.MULTILINE)
LETTER = re.compile(
    r"(?<![A-Za-z])\(?([A-H])(?:[).:]|(?= (?:or|and)\b)|(?![A-Za-z' ]))"
    r"|\b(?:answer|option|choice)(?: is)?:? \(?([A-H])\b"
    r"|\(([a-h])\)"
)
"""A letter by itself, announced, or in parentheses; not the article in "A cat"."""


def readable(lines: Sequence[AnswerLine]) -> bool:
    """Whether there are lines, and each has an answer, one text as the right one, and a score of its own, 0 to 1."""
    texts = all(isinstance(line.get(field), str) for line in lines for field in ("answer", "target"))
    return bool(lines) and texts and all(line["score"] is not None and 0 <= line["score"] <= 1 for line in lines)


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
