"""Data for figures that needs a model: sorted logits at one position, and attention maps."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.build import check_pair, load, open_rows, read_rows, shown_to
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.image import open_image, stored
from switchkd_cli.engine.data.rows import Fault, Row, Rows
from switchkd_cli.engine.evaluation.against_teacher import compared
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.diagnostics import leading_knees
from switchkd_cli.engine.training.figures import knee
from switchkd_cli.engine.training.processes import ALONE
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Term
from switchkd_cli.report.figures.saved_models import NAMED, AttentionExample, AttentionMap, KneePosition, LogitsCurve
from switchkd_cli.runs.run_folder import RunFolder

EXAMPLES = 3  # examples whose attention is shown
SEARCHED_ROWS = 300  # rows among which these examples are looked for, far from one another
ORDER = ("teacher", "student", "switch")  # of the panels
LONGEST = 45  # characters of a question's first line that are readable above an image


@torch.inference_mode()
def knee_position(folder: RunFolder) -> KneePosition | None:
    """Return the sorted logits of a finished student, its teacher and its switch where the answer to a question begins.

    Only of paths whose knee selects the logits of a term; None where there is none, or no question in the data that can
    be shown.
    """
    transformers_logging.disable_progress_bar()
    run = folder.run()
    terms = [term for term in run.config.stages[-1].objective if term.on != "image"]
    knees = {
        of.of: of for of in reversed(leading_knees(terms).values()) if of.of in ORDER
    }  # of several terms, the first one's
    if run.config.switch.adapter is not None:  # it is not kept
        knees.pop("switch", None)
    if not (knees and (rows := _choose_rows(run, folder)[:1])):
        return None
    pair = check_pair(run.config, with_teacher=True)
    paths = pair.build(trained=folder.model)
    assert paths.teacher is not None and pair.teacher is not None  # terms with knees compare it
    data = _conversations(run, rows, paths.student)
    data = shown_to(data, pair.student, pair.teacher, by_bytes=bool(pair.vocabulary.own))
    ((batch, keep),) = compared(paths, data, "fp32")
    logits = paths(batch, tuple(knees), keep)
    read, mask = batch.read_by("teacher", keep)
    # of unlike tokens only teacher and switch have knees
    tokenizer = (paths.student if paths.tokens is None else paths.teacher).inputs.tokenizer
    return KneePosition(
        model=f"{run.title} (seed {run.seed})",
        question=_first_line(rows[0]),
        answer=tokenizer.decode(read.targets[mask][:1]).strip(),
        paths=tuple(_logits_curve(logits[path][:1].float(), knees[path], tokenizer) for path in ORDER if path in knees),
    )


@torch.inference_mode()
def attention_examples(folders: Sequence[RunFolder]) -> list[AttentionExample]:
    """Return attention maps of the first run's teacher (if any) and each run's student, for the same questions.

    The questions are from the last stage's data. The attention is that of the question's last word, the first token that
    sees the whole question.
    """
    transformers_logging.disable_progress_bar()
    run = folders[0].run()
    rows = _choose_rows(run, folders[0])
    maps = [
        [_attention_map(model, batch) for batch in _batches(_conversations(run, rows, model))]
        for model in _models(run, folders)
    ]
    examples = []
    for row, each in zip(rows, zip(*maps, strict=True), strict=True):
        words, own = zip(*each, strict=True)
        image = open_image(row.images[0], None)
        examples.append(AttentionExample(image, _first_line(row), words[0], row.exchanges[0][1], own))
    return examples


def _models(run: Run, folders: Sequence[RunFolder]) -> Iterator[VisionLanguageModel]:
    """Yield teacher and students, one in memory at a time."""
    if run.config.teacher is not None and (teacher := check_pair(run.config, with_teacher=True).teacher):
        yield teacher.build().to(ALONE.device).eval()
    for folder in folders:
        yield load(str(folder.model)).to(ALONE.device).eval()


def _choose_rows(run: Run, folder: RunFolder) -> list[Row]:
    """Return rows of the last stage's data that have one image, each cut to its shortest question.

    Only Latin letters: the figures' font has no others.
    """
    rows = open_rows(run.config.data[run.config.stages[-1].trained_on[0]], folder.root)
    chosen: list[Row] = []
    searched = min(SEARCHED_ROWS, len(rows))
    for index in range(searched):
        if index < len(chosen) * searched // EXAMPLES:
            continue
        with suppress(Fault, OSError):  # faulty rows were reported before training
            row = rows[index]
            trained = [e for i, e in enumerate(row.exchanges) if i not in row.unlearnt]
            # the first line is the question itself, and short
            lines = [e[0].split("\n")[0] for e in trained]
            fitting = [e for e, line in zip(trained, lines, strict=True) if "?" in line and len(line) <= LONGEST]
            short = [e for e in fitting if "".join(e).isascii()]
            if len(row.images) == 1 and short:
                shortest = min(short, key=lambda e: len(e[0]))
                # its row moves to other data, without this folder
                image = stored(row.images[0], rows.images, follow_links=rows.follow_links)
                chosen.append(Row(row.id, (shortest,), (image,), row.system))
    return chosen


def _conversations(run: Run, rows: Sequence[Row], model: VisionLanguageModel) -> Conversations:
    spec = run.config.data[run.config.stages[-1].trained_on[0]]
    return read_rows(Rows(rows, lambda row: cast(Row, row)), spec, model.inputs)


def _batches(data: Conversations) -> list[Batch]:
    """Return each row as a batch of its own."""
    pad_token = data.inputs.tokenizer.pad_token_id
    return [collate([data[i]], pad_token=pad_token).to(ALONE.device) for i in range(len(data))]


def _logits_curve(logits: Tensor, measured: Term, tokenizer: PreTrainedTokenizerBase) -> LogitsCurve:
    """Return one path's logits [1, V] sorted, with its knee and the k that the term uses."""
    rank, k = map(int, knee(logits, **measured.parameters)[0, :2])
    values, ids = logits[0].sort(descending=True)
    return LogitsCurve(
        path=measured.of,
        logits=values.cpu().numpy(),
        window=measured.parameters["window"],
        knee=rank,
        k=k,
        first=tuple(tokenizer.decode([i]).strip() for i in ids[:NAMED].tolist()),
    )


def _attention_map(model: VisionLanguageModel, batch: Batch) -> tuple[str, AttentionMap]:
    """Return the word whose attention is shown, and one model's map of it, with its own choice at each answer token."""
    tokenizer, place = model.inputs.tokenizer, _last_word(batch, model)
    paths = Paths(model, None, len(model.head))
    found = paths(batch, ("student", "student.attentions"), batch.predicting("answer"))
    answer = tokenizer.decode(found["student"].argmax(-1), skip_special_tokens=True)
    weights = found["student.attentions"][0][place].mean(-1)
    return tokenizer.decode([batch.input_ids[0, place]]).strip(), AttentionMap(_grid(weights), answer.strip())


def _last_word(batch: Batch, model: VisionLanguageModel) -> int:
    """Return the index of the last token with a letter before the first question mark after the image."""
    tokenizer = model.inputs.tokenizer
    first = int(batch.image[0].nonzero().max()) + 1
    texts = [tokenizer.decode([i]) for i in batch.input_ids[0, first:].tolist()]
    end = next(i for i, text in enumerate(texts) if "?" in text)
    return first + max(i for i in range(end + 1) if any(letter.isalpha() for letter in texts[i]))


def _grid(weights: Tensor) -> np.ndarray:
    """Return [visual tokens] as a square; a tower that drops its first patches leaves holes at the top left."""
    side = int(np.ceil(len(weights) ** 0.5))
    holes = weights.new_full((side**2 - len(weights),), torch.nan)
    return torch.cat([holes, weights]).float().reshape(side, side).cpu().numpy()


def _first_line(row: Row) -> str:
    return row.exchanges[0][0].splitlines()[0]
