"""The columns that the stock lmms-eval 0.7.3 tasks read, filled from the playground's questions."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

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


def _image(item: BenchmarkItem) -> dict:
    return {"bytes": item.png, "path": f"{item.scene}.png"}


def _option(index: int) -> "Fill":
    """Return the filler of an option's column, which is empty where the question has fewer options."""
    return lambda item: item.question.options[index] if index < len(item.question.options) else None


def _annotations(item: BenchmarkItem) -> list[dict]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(item.question.answers, 1)
    ]


Fill = Callable[[BenchmarkItem], object]
Columns = dict[str, tuple[pa.DataType, Fill]]

_IMAGE: Columns = {"image": (IMAGE, _image)}
_QUESTION: Columns = {"question": (TEXT, lambda item: item.question.text)}
_ANSWER: Columns = {"answer": (TEXT, lambda item: item.question.answer)}
_ANSWERS: Columns = {"answers": (TEXTS, lambda item: list(item.question.answers))}
_NUMBERED: Columns = {"question_id": (NUMBER, lambda item: item.number)}
_NAMED: Columns = {"question_id": (TEXT, lambda item: str(item.number))}
_KIND: Columns = {"category": (TEXT, lambda item: item.question.kind)}

_MMBENCH: Columns = {
    "index": (NUMBER, lambda item: item.number),
    "question": (TEXT, lambda item: item.question.text),
    "hint": (TEXT, lambda item: item.question.hint or None),
    "answer": (TEXT, lambda item: item.question.answer),
    **{letter: (TEXT, _option(i)) for i, letter in enumerate(LETTERS)},
    "category": (TEXT, lambda item: item.question.kind),
    "L2-category": (TEXT, lambda item: item.question.kind),
    "source": (TEXT, lambda item: "playground"),
    "split": (TEXT, lambda item: "dev"),
    **_IMAGE,
}

# Both questions of a pair have the image's name as their id: MME scores them together.
_PAIRED: Columns = {"question_id": (TEXT, lambda item: item.scene)}

COLUMNS: dict[str, Columns] = {
    "mme": _PAIRED | _IMAGE | _QUESTION | _ANSWER | _KIND,
    "pope": _NAMED | _QUESTION | _ANSWER | _KIND | _IMAGE,
    "gqa": {"id": (TEXT, lambda item: str(item.number)), "imageId": (TEXT, lambda item: item.scene)}
    | _QUESTION
    | _ANSWER,
    "mmbench_en_dev": _MMBENCH,
    "mmbench_cn_dev": _MMBENCH,
    "scienceqa_img": _IMAGE
    | _QUESTION
    | {
        "choices": (TEXTS, lambda item: list(item.question.options)),
        "answer": (NUMBER, lambda item: LETTERS.index(item.question.answer)),
        "hint": (TEXT, lambda item: item.question.hint),
    },
    "textvqa_val": _NUMBERED | _QUESTION | _IMAGE | _ANSWERS,
    "vizwiz_vqa_val": _NAMED | _IMAGE | _QUESTION | _ANSWERS | _KIND,
    "mmmu_val": {
        "id": (TEXT, lambda item: f"validation_Playground_{item.number + 1}"),
        "question": (TEXT, lambda item: item.question.text),
        "options": (TEXT, lambda item: repr(list(item.question.options))),
        "image_1": (IMAGE, _image),
        "answer": (TEXT, lambda item: item.question.answer),
        "question_type": (TEXT, lambda item: "multiple-choice"),
    },
    "vqav2_val": _NUMBERED
    | _QUESTION
    | {
        "multiple_choice_answer": (TEXT, lambda item: item.question.answer),
        "answers": (pa.list_(ANNOTATION), _annotations),
    }
    | _IMAGE,
}
"""The columns of each task's questions. GQA has its images in a second table, `GQA_IMAGES`."""

KIND: Columns = {"kind": (TEXT, lambda item: item.question.kind)}
"""A further column of every table of questions: what is asked for. No task reads it."""

GQA_IMAGES: Columns = {"id": (TEXT, lambda item: item.scene)} | _IMAGE
