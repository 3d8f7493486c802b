"""The order in which training visits the rows; it depends only on the seed."""

from __future__ import annotations

import math

import numpy as np
import torch


def order(rows: int, count: int, seed: int) -> list[int]:
    """Return the first `count` row numbers to visit: a new permutation for each epoch, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(rows, generator=generator) for _ in range(math.ceil(count / rows))]
    return torch.cat(epochs)[:count].tolist()


def grouped_order(sizes: np.ndarray, image_mask: np.ndarray, batch: int, count: int, seed: int) -> list[int]:
    """Like `order`, but the `batch` rows of a step either all have an image or are all text, the longest first.

    Within each kind, rows are assigned to steps at random (as in LLaVA's `group_by_modality_length`); only micro-batches
    hold rows of similar length. Left-over rows of both kinds, too few for a step, are mixed. Every epoch visits every
    row once.
    """
    generator = torch.Generator().manual_seed(seed)
    visited: list[int] = []
    left: list[int] = []  # rows too few for a step; the next epoch begins with them
    while len(visited) < count:
        rows = torch.tensor([*left, *torch.randperm(len(sizes), generator=generator).tolist()])
        first, rows = rows[: batch if left else 0], rows[batch if left else 0 :]
        row_has_image = torch.from_numpy(image_mask)[rows]
        kinds = [rows[row_has_image], rows[~row_has_image]]
        full = [step for kind in kinds for step in kind.split(batch) if len(step) == batch]
        mixed = torch.cat([kind[len(kind) // batch * batch :] for kind in kinds])
        mixed = mixed[torch.randperm(len(mixed), generator=generator)]
        steps = [full[i] for i in torch.randperm(len(full), generator=generator)]
        steps = [s for s in (first, *steps, *mixed.split(batch)) if len(s)]
        left = steps.pop().tolist() if len(steps[-1]) < batch else []
        for step in steps:
            longest_first = np.argsort(-sizes[step], kind="stable")
            visited += step[longest_first].tolist()
    return visited[:count]
