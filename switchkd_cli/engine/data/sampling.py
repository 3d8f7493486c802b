"""The order in which training visits the rows; it depends only on the seed."""

import math
from collections.abc import Iterator, Sequence
from itertools import count as count_from

import numpy as np
import torch


def order(rows: int, count: int, seed: int) -> list[int]:
    """Return the first `count` row numbers to visit: a new permutation for each epoch, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(rows, generator=generator) for _ in range(math.ceil(count / rows))]
    return torch.cat(epochs)[:count].tolist()


def mixed_order(rows: Sequence[int], shares: Sequence[float], count: int, seed: int) -> list[int]:
    """Return the first `count` examples of a mixture, numbered one data set after another.

    Each set is visited in the `order` of a seed of its own. The sets take turns as evenly as their shares allow: the j-th
    example of a set with share s is due at (j + 1/2) / s, so no stretch of the training has more or less of a set than its
    share, by about one example.
    """
    wanted = [math.ceil(count * share) + 1 for share in shares]
    due = np.concatenate([(np.arange(n) + 0.5) / share for n, share in zip(wanted, shares, strict=True)])
    of = np.repeat(np.arange(len(rows)), wanted)[np.argsort(due, kind="stable")[:count]]
    visited, first = np.zeros(count, np.int64), 0
    for number, size in enumerate(rows):
        mine = of == number
        if mine.any():
            visited[mine] = first + np.array(order(size, int(mine.sum()), seed + (number << 32)))
        first += size
    return visited.tolist()


def grouped_order(
    sizes: np.ndarray, image_mask: np.ndarray, batch: int, count: int, seed: int, plain: Sequence[int] | None = None
) -> list[int]:
    """Like `order`, but the `batch` rows of a step either all have an image or are all text, the longest first.

    Within each kind, rows are assigned to steps at random (as in LLaVA's `group_by_modality_length`); only micro-batches
    hold rows of similar length. Left-over rows of both kinds, too few for a step, are mixed. Every epoch visits every
    row once, or what it has in a `plain` order of whole epochs, which needs a step more than `count`.
    """
    generator = torch.Generator().manual_seed(seed)
    visited: list[int] = []
    left: list[int] = []  # rows too few for a step; the next epoch begins with them
    permutations = (torch.randperm(len(sizes), generator=generator) for _ in count_from())
    epochs: Iterator[torch.Tensor] = permutations if plain is None else iter(torch.tensor(plain).split(len(sizes)))
    while len(visited) < count:
        rows = torch.tensor([*left, *next(epochs).tolist()])
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
