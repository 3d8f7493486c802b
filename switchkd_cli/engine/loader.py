"""Which rows a stage visits, in which order, and how they become micro-batches."""

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch.utils.data import DataLoader

from switchkd_cli.cores import cores
from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.data.conversation import Conversations, NoStandIn
from switchkd_cli.engine.data.order import grouped_order, order
from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage

MOST_WORKERS = 8  # processes that prepare data, where nobody says how many


def steps_of(stage: Stage, rows: int) -> int:
    """Optimiser steps of a stage; a last, incomplete batch of the last epoch is filled from the next permutation."""
    return stage.steps or math.ceil(stage.epochs * rows / stage.batch)


def visits(stage: Stage, data: Conversations, wanted: int, seed: int) -> list[int]:
    """Which rows the stage visits, in order."""
    if stage.group_by == "modality_length":
        return grouped_order(data.sizes, data.pictured, stage.batch, wanted, seed)
    return order(len(data), wanted, seed)


def loader_of(
    stage: Stage, student: Llava, data: Conversations, visited: Sequence[int], micro: int
) -> DataLoader:
    """Micro-batches of the visited rows, in order, however many processes prepare them.

    Its generator is its own: to begin again in the middle draws nothing from the global one.
    """
    together = partial(
        collate,
        image_token=student.model.config.image_token_id,
        pad_token=student.processor.tokenizer.pad_token_id,
    )
    return DataLoader(
        data,
        batch_size=micro,
        sampler=visited,
        collate_fn=together,
        num_workers=workers_of(stage, data),
        generator=torch.Generator(),
    )


def micro_batch(stage: Stage, processes: int) -> int:
    """Rows that a process holds at once: the recipe's `micro_batch`, or the largest that divides its share of the batch.

    Raises UserError where the batch can't be shared out evenly.
    """
    each, left = divmod(stage.batch, processes)
    if left:
        fits = max(n for n in range(1, processes) if stage.batch % n == 0)
        raise UserError(
            f"stages.{stage.name}.batch: must be a multiple of the {processes} processes, got {stage.batch}",
            hint=f"train in {fits} of them, or change stages.{stage.name}.batch",
        )
    wanted = min(stage.micro_batch or each, each)
    return max(n for n in range(1, wanted + 1) if each % n == 0)


def share_of(visited: Sequence[int], micro: int, rank: int, processes: int) -> list[int]:
    """The rows of one of several processes: the micro-batches of one are dealt out, a step's to all in turn."""
    firsts = range(rank * micro, len(visited), processes * micro)
    return [row for first in firsts for row in visited[first : first + micro]]


def workers_of(stage: Stage, data: Conversations) -> int:
    """Processes that prepare data: what the stage says; else none for a set that stays in memory."""
    if stage.workers is not None:
        return stage.workers
    if data.fits:
        return 0
    mine = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, mine - 1))


def taken(loader: Iterator[Batch], count: int) -> list[Batch]:
    """The next micro-batches. Raises UserError when the data is gone."""
    try:
        return list(islice(loader, count))
    except NoStandIn as error:  # from a worker it comes with its traceback in the text
        told = str(error).strip().splitlines()[-1].removeprefix(f"{NoStandIn.__module__}.NoStandIn: ")
        raise UserError(told, hint="check that the pictures are still there") from None
