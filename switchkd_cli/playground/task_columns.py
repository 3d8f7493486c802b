"""The columns that the stock lmms-eval 0.7.3 tasks read, filled from the world's questions."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from switchkd_cli.playground.text.prompts import LETTERS, Question

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How the datasets library stores a picture."""
TEXT, NUMBER, TEXTS = pa.string(), pa.int64(), pa.list_(pa.string())
ANNOTATION = pa.struct([("answer", TEXT), ("answer_confidence", TEXT), ("answer_id", NUMBER)])


@dataclass(frozen=True)
class Asked:
    """One row to be: a question about a picture, and what names them."""

    question: Question
    picture: bytes
    """PNG."""
    scene: str
    """The picture's name."""
    number: int
    """Place in the set, from 0."""


def _image(row: Asked) -> dict:
    return {"bytes": row.picture, "path": f"{row.scene}.png"}


def _letter(row: Asked, index: int) -> str | None:
    options = row.question.options
    return options[index] if index < len(options) else None


def _annotations(row: Asked) -> list[dict]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(row.question.answers, 1)
    ]


Fill = Callable[[Asked], object]
Columns = dict[str, tuple[pa.DataType, Fill]]

_IMAGE: Columns = {"image": (PICTURE, _image)}
_QUESTION: Columns = {"question": (TEXT, lambda row: row.question.text)}
_ANSWER: Columns = {"answer": (TEXT, lambda row: row.question.answer)}
_ANSWERS: Columns = {"answers": (TEXTS, lambda row: list(row.question.answers))}
_NUMBERED: Columns = {"question_id": (NUMBER, lambda row: row.number)}
_NAMED: Columns = {"question_id": (TEXT, lambda row: str(row.number))}
_KIND: Columns = {"category": (TEXT, lambda row: row.question.kind)}

_MMBENCH: Columns = {
    "index": (NUMBER, lambda row: row.number),
    "question": (TEXT, lambda row: row.question.text),
    "hint": (TEXT, lambda row: row.question.hint or None),
    "answer": (TEXT, lambda row: row.question.answer),
    **{letter: (TEXT, lambda row, i=i: _letter(row, i)) for i, letter in enumerate(LETTERS)},
    "category": (TEXT, lambda row: row.question.kind),
    "L2-category": (TEXT, lambda row: row.question.kind),
    "source": (TEXT, lambda row: "playground"),
    "split": (TEXT, lambda row: "dev"),
    **_IMAGE,
}

# Of a pair, both questions carry the picture's name: MME scores them together.
_PAIRED: Columns = {"question_id": (TEXT, lambda row: row.scene)}

COLUMNS: dict[str, Columns] = {
    "mme": _PAIRED | _IMAGE | _QUESTION | _ANSWER | _KIND,
    "pope": _NAMED | _QUESTION | _ANSWER | _KIND | _IMAGE,
    "gqa": {"id": (TEXT, lambda row: str(row.number)), "imageId": (TEXT, lambda row: row.scene)}
    | _QUESTION
    | _ANSWER,
    "mmbench_en_dev": _MMBENCH,
    "mmbench_cn_dev": _MMBENCH,
    "scienceqa_img": _IMAGE
    | _QUESTION
    | {
        "choices": (TEXTS, lambda row: list(row.question.options)),
        "answer": (NUMBER, lambda row: LETTERS.index(row.question.answer)),
        "hint": (TEXT, lambda row: row.question.hint),
    },
    "textvqa_val": _NUMBERED | _QUESTION | _IMAGE | _ANSWERS,
    "vizwiz_vqa_val": _NAMED | _IMAGE | _QUESTION | _ANSWERS | _KIND,
    "mmmu_val": {
        "id": (TEXT, lambda row: f"validation_Playground_{row.number + 1}"),
        "question": (TEXT, lambda row: row.question.text),
        "options": (TEXT, lambda row: repr(list(row.question.options))),
        "image_1": (PICTURE, _image),
        "answer": (TEXT, lambda row: row.question.answer),
        "question_type": (TEXT, lambda row: "multiple-choice"),
    },
    "vqav2_val": _NUMBERED
    | _QUESTION
    | {
        "multiple_choice_answer": (TEXT, lambda row: row.question.answer),
        "answers": (pa.list_(ANNOTATION), _annotations),
    }
    | _IMAGE,
}
"""Columns of each task's questions. GQA keeps its pictures in a second table, `GQA_IMAGES`."""

KIND: Columns = {"kind": (TEXT, lambda row: row.question.kind)}
"""Of every table of questions: what is asked. No task reads it."""

GQA_IMAGES: Columns = {"id": (TEXT, lambda row: row.scene)} | _IMAGE
