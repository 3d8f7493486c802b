"""Logits and hidden states shaped like a language model's, for losses that search a knee.

Kneedle finds the rank where the sorted curve is as steep as the line from its highest to its lowest value. For a bulk of
normal logits of deviation s with a few dozen ids raised above it, so that the whole spans 13.6 s, that is where the
normal density is s / 13.6 s: at 1.84 deviations, which 3.3 % of the ids lie above: 5,000 of 151,936, as of a language
model's (docs/method.md). Plain normal logits span less and would have their knee near 8,700.
"""

import torch
from torch import Tensor

DEVIATION = 2.5
RAISED = 22.0 * torch.exp(-torch.arange(40) / 8.0)
"""How far the likely ids of a position are above the bulk."""
SHARED = 0.8  # correlation of the two models' bulks


def logits(positions: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a teacher's and a student's logits, [N, V] each, with the same likely ids and similar bulks."""
    draw = torch.Generator().manual_seed(seed)
    likely = _likely(positions, columns, draw)
    teacher = torch.randn(positions, columns, generator=draw)
    student = SHARED * teacher + (1 - SHARED**2) ** 0.5 * torch.randn(positions, columns, generator=draw)
    return tuple(_raised(DEVIATION * bulk, likely) for bulk in (teacher, student))


def states(positions: int, heads: tuple[Tensor, Tensor], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return hidden states [N, D] that give such logits with these heads [V, D], made by `head`.

    A state is noise, which makes the bulk, and the likely ids' own rows of the head, each as long as it is raised.
    """
    draw = torch.Generator().manual_seed(seed)
    likely = _likely(positions, len(heads[0]), draw)
    found = []
    for rows in heads:
        noise = DEVIATION * torch.randn(positions, rows.shape[1], generator=draw)
        found.append(noise + torch.einsum("nrd,r->nd", rows[likely], RAISED[: likely.shape[1]]))
    return tuple(found)


def head(columns: int, width: int, seed: int = 0) -> Tensor:
    """Return a head [V, D] with rows of about unit length."""
    return torch.randn(columns, width, generator=torch.Generator().manual_seed(seed)) / width**0.5


def _likely(positions: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.randint(columns, (positions, min(len(RAISED), columns)), generator=draw)


def _raised(bulk: Tensor, likely: Tensor) -> Tensor:
    return bulk.scatter_add(-1, likely, RAISED[: likely.shape[1]].expand(likely.shape))
