"""In which order rows are visited, decided by a seed alone."""

from __future__ import annotations

import math

import numpy as np
import torch


def order(rows: int, wanted: int, seed: int) -> list[int]:
    """Which rows are visited, in order: every epoch a new permutation, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(rows, generator=generator) for _ in range(math.ceil(wanted / rows))]
    return torch.cat(epochs)[:wanted].tolist()


def grouped_order(sizes: np.ndarray, pictured: np.ndarray, batch: int, wanted: int, seed: int) -> list[int]:
    """Like `order`, but each step's `batch` rows are all pictured or all text, the longest row first.

    Which rows share a step is left to chance within their kind (as LLaVA's `group_by_modality_length` does), so that
    only micro-batches hold rows of like length. Rows of a kind that fill no step are mixed; every epoch visits every
    row once.
    """
    generator = torch.Generator().manual_seed(seed)
    visited: list[int] = []
    left: list[int] = []  # rows that fill no step; they open the next epoch
    while len(visited) < wanted:
        rows = torch.tensor([*left, *torch.randperm(len(sizes), generator=generator).tolist()])
        first, rows = rows[: batch if left else 0], rows[batch if left else 0 :]
        kind = torch.from_numpy(pictured)[rows]
        kinds = [rows[kind], rows[~kind]]
        whole = [step for of_kind in kinds for step in of_kind.split(batch) if len(step) == batch]
        mixed = torch.cat([of_kind[len(of_kind) // batch * batch :] for of_kind in kinds])
        mixed = mixed[torch.randperm(len(mixed), generator=generator)]
        steps = [whole[i] for i in torch.randperm(len(whole), generator=generator)]
        steps = [s for s in (first, *steps, *mixed.split(batch)) if len(s)]
        left = steps.pop().tolist() if len(steps[-1]) < batch else []
        for step in steps:
            longest_first = np.argsort(-sizes[step], kind="stable")
            visited += step[longest_first].tolist()
    return visited[:wanted]
