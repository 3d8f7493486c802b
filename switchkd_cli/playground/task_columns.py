"""The columns that the stock lmms-eval 0.7.3 tasks read, filled from the playground's questions."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from switchkd_cli.package_data import read_yaml
from switchkd_cli.playground.text.prompts import LETTERS, Question

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How the datasets library stores an image."""
TEXT, NUMBER, TEXTS = pa.string(), pa.int64(), pa.list_(pa.string())
ANNOTATION = pa.struct([("answer", TEXT), ("answer_confidence", TEXT), ("answer_id", NUMBER)])


@dataclass(frozen=True)
class BenchmarkItem:
    """One item of a benchmark: a question about an image, and the names of both."""

    question: Question
    png: bytes
    scene: str
    """The image's name."""
    number: int
    """Its position in the set, from 0."""


Fill = Callable[[BenchmarkItem], object]
Columns = dict[str, tuple[pa.DataType, Fill]]

_HOLDS: Columns = {
    "number": (NUMBER, lambda item: item.number),
    "number as text": (TEXT, lambda item: str(item.number)),
    "MMMU name": (TEXT, lambda item: f"validation_Playground_{item.number + 1}"),
    "image": (IMAGE, lambda item: {"bytes": item.png, "path": f"{item.scene}.png"}),
    "image name": (TEXT, lambda item: item.scene),
    "question": (TEXT, lambda item: item.question.text),
    "kind": (TEXT, lambda item: item.question.kind),
    "hint": (TEXT, lambda item: item.question.hint),
    "hint or null": (TEXT, lambda item: item.question.hint or None),
    "options": (TEXTS, lambda item: list(item.question.options)),
    "number from 1": (NUMBER, lambda item: item.number + 1),
    "options as text": (TEXT, lambda item: repr(list(item.question.options))),
    "answer": (TEXT, lambda item: item.question.answer),
    "lettered options": (TEXT, lambda item: " ".join(map("({}) {}".format, "abcd", item.question.options))),
    "lettered answer": (TEXT, lambda item: f"({item.question.answer.lower()})"),
    "index of answer": (NUMBER, lambda item: LETTERS.index(item.question.answer)),
    "answers": (TEXTS, lambda item: list(item.question.answers)),
    "annotated answers": (
        pa.list_(ANNOTATION),
        lambda item: [(answer, "yes", number) for number, answer in enumerate(item.question.answers, 1)],
    ),
}


def _column(holds: str) -> tuple[pa.DataType, Fill]:
    if holds.startswith("="):
        return TEXT, lambda item: holds[1:]
    if holds.startswith("option "):  # null where the question has fewer options
        return TEXT, lambda item: dict(zip(LETTERS, item.question.options, strict=False)).get(holds[-1])
    return _HOLDS[holds]


_TASKS = read_yaml(__file__)
COLUMNS: dict[str, Columns] = {
    task: {column: _column(holds) for column, holds in columns.items()} for task, columns in _TASKS.items()
}
"""The columns of each task's questions. GQA has its images in a second table, `GQA_IMAGES`."""

KIND: Columns = {"kind": _HOLDS["kind"]}
"""A further column of every table of questions: what is asked for. No task reads it."""

GQA_IMAGES: Columns = {"id": _HOLDS["image name"], "image": _HOLDS["image"]}
