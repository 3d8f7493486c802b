"""What only the models can say for a picture: their logits at a position, and where they look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.build import check_pair, load, open_data
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.image import open_image
from switchkd_cli.engine.data.rows import Fault, Row, Rows
from switchkd_cli.engine.models.family import VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.knee_stats import KneeSpec, knee_specs, measure_knees
from switchkd_cli.engine.training.processes import ALONE
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Term
from switchkd_cli.report.figures.attention_maps import AttentionExample, AttentionMap
from switchkd_cli.report.figures.knee_positions import NAMED, KneePosition, LogitsCurve
from switchkd_cli.runs.run_folder import RunFolder

QUESTIONS = 3  # pictures of which attention is shown
LOOKED_THROUGH = 300  # rows among which they are sought, far from one another
ORDER = ("teacher", "student", "switch")  # of the panels
LONGEST = 45  # characters of a question's first line: what stands readably over a picture


@torch.inference_mode()
def knee_position(folder: RunFolder) -> KneePosition | None:
    """The finished student, its teacher and its switch where the answer to a question begins.

    Those that lead a term at their knees; None where none does, or its data has no question that can be shown.
    """
    transformers_logging.disable_progress_bar()
    run = folder.run()
    leading = _leading(run.config.stages[-1].objective)
    if not leading:
        return None
    pair = check_pair(run.config, with_teacher=True)
    paths = (
        Paths(load(str(folder.model)), pair.required_teacher.build(), pair.vocabulary.shared)
        .to(ALONE.device)
        .eval()
    )
    shown = _shown(run, folder, paths.student)[:1]
    if not shown:
        return None
    batch = _batch(paths.student, _asked(run, shown, paths.student), 0).to(ALONE.device)
    keep = batch.predicting("answer")
    keep &= keep.cumsum(-1) == 1
    logits = paths(batch, tuple(leading), keep)
    words = paths.student.inputs.tokenizer
    return KneePosition(
        model=f"{run.title} (seed {run.seed})",
        question=_first_line(shown[0]),
        answer=words.decode(batch.targets[keep]).strip(),
        paths=tuple(_sorted(logits[path].float(), leading[path], words) for path in ORDER if path in leading),
    )


@torch.inference_mode()
def attention_examples(folders: Sequence[RunFolder]) -> list[AttentionExample]:
    """The same questions of the last stage's data put to the first run's teacher (if any) and each run's student.

    Looked from is the last word of the question, the first that can know all that is asked.
    """
    transformers_logging.disable_progress_bar()
    run = folders[0].run()
    shown = _shown(run, folders[0], load(str(folders[0].model)))
    seen = [
        [_look(model, rows, i) for i in range(len(shown))] for model, rows in _readers(run, folders, shown)
    ]
    return [
        AttentionExample(
            open_image(row.images[0], None),
            _first_line(row),
            looks[0][0],
            row.exchanges[0][1],
            tuple(m for _, m in looks),
        )
        for row, looks in zip(shown, zip(*seen, strict=True), strict=True)
    ]


def _readers(
    run: Run, folders: Sequence[RunFolder], shown: Sequence[Row]
) -> Iterator[tuple[VisionLanguageModel, Conversations]]:
    """Teacher and students, one in memory at a time, each with the rows as it is asked them."""
    if run.config.teacher is not None:
        teacher = check_pair(run.config, with_teacher=True).required_teacher.build().to(ALONE.device).eval()
        yield teacher, _asked(run, shown, teacher)
        del teacher
    for folder in folders:
        student = load(str(folder.model)).to(ALONE.device).eval()
        yield student, _asked(run, shown, student)


def _shown(run: Run, folder: RunFolder, model: VisionLanguageModel) -> list[Row]:
    """Rows of the last stage's data with a picture, each cut to its shortest question.

    Only Latin letters: the pictures' font has no others.
    """
    data = open_data(run.config.data[run.config.stages[-1].data], model, folder.root)
    found: list[Row] = []
    looked_through = min(LOOKED_THROUGH, len(data))
    for index in range(looked_through):
        if index < len(found) * looked_through // QUESTIONS:
            continue
        with suppress(Fault, OSError):  # the ledger told of faulty rows before they were trained on
            row = data.rows[index]
            taught = [e for i, e in enumerate(row.exchanges) if i not in row.unlearnt]
            short = [e for e in taught if "".join(e).isascii() and _fits(e[0])]
            if row.images and short:
                shortest = min(short, key=lambda e: len(e[0]))
                image = _image_file(row.images[0], data)
                found.append(replace(row, exchanges=(shortest,), unlearnt=frozenset(), images=(image,)))
        if len(found) == QUESTIONS:
            break
    return found


def _fits(question: str) -> bool:
    """Whether the question itself is its first line, and short."""
    first = question.split("\n")[0]
    return "?" in first and len(first) <= LONGEST


def _image_file(image: str | bytes, data: Conversations) -> bytes:
    """The bytes of an image's file: its row is put into other data than it came from."""
    return Path(data.rows.images or "", image).read_bytes() if isinstance(image, str) else image


def _asked(run: Run, shown: Sequence[Row], model: VisionLanguageModel) -> Conversations:
    """The rows as this model is asked them."""
    spec = run.config.data[run.config.stages[-1].data]
    rows = Rows(list(shown), lambda row: cast(Row, row))
    return Conversations(rows, model.inputs, template=spec.template)


def _batch(model: VisionLanguageModel, data: Conversations, index: int) -> Batch:
    return collate([data[index]], pad_token=model.inputs.tokenizer.pad_token_id)


def _leading(terms: Sequence[Term]) -> dict[str, KneeSpec]:
    """Each path that leads a term on text at its knees, and what the first such term seeks there."""
    found: dict[str, KneeSpec] = {}
    for _, at in knee_specs([term for term in terms if term.on != "image"]):
        found.setdefault(at.path, at)
    return found


def _sorted(logits: Tensor, at: KneeSpec, words: PreTrainedTokenizerBase) -> LogitsCurve:
    """One path's logits [1, V], sorted, with the knee and what the term makes of it."""
    found = measure_knees(logits, at)
    values, ids = logits[0].sort(descending=True)
    return LogitsCurve(
        path=at.path,
        logits=values.cpu().numpy(),
        window=at.window,
        knee=int(found.knee),
        k=int(found.k),
        first=tuple(words.decode([i]).strip() for i in ids[:NAMED].tolist()),
    )


def _look(model: VisionLanguageModel, data: Conversations, index: int) -> tuple[str, AttentionMap]:
    """The word that one model is looked at from, and its map."""
    batch = _batch(model, data, index).to(ALONE.device)
    weights, said = _attention(model, batch)
    place = _last_word(batch, model)
    return model.inputs.tokenizer.decode([batch.input_ids[0, place]]).strip(), AttentionMap(
        _grid(weights[place]), said
    )


def _last_word(batch: Batch, model: VisionLanguageModel) -> int:
    """The place of the last token with a letter before the first question mark after the picture."""
    words = model.inputs.tokenizer
    first = int(batch.image[0].nonzero().max()) + 1
    texts = [words.decode([i]) for i in batch.input_ids[0, first:].tolist()]
    end = next(i for i, text in enumerate(texts) if "?" in text)
    return first + max(i for i in range(end + 1) if any(letter.isalpha() for letter in texts[i]))


def _attention(model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, str]:
    """Mean attention [T, visual tokens] of every token to the image, and the model's choice at each answer token."""
    weights, logits = model.mean_attention(batch)
    answer = logits[batch.predicting("answer")[0]].argmax(-1)
    words = model.inputs.tokenizer.decode(answer, skip_special_tokens=True)
    return weights[:, batch.image[0]], words.strip()


def _grid(weights: Tensor) -> np.ndarray:
    """[image tokens] as a square; a tower that drops its first patches leaves holes at the top left."""
    side = int(np.ceil(len(weights) ** 0.5))
    holes = weights.new_full((side**2 - len(weights),), torch.nan)
    return torch.cat([holes, weights]).float().reshape(side, side).cpu().numpy()


def _first_line(row: Row) -> str:
    return row.exchanges[0][0].splitlines()[0]
