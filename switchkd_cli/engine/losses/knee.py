"""Kneedle (Satopaa et al., 2011): where the sorted logits of a row turn from steep to flat."""

import torch
from torch import Tensor

from .columns import FLOOR, absent_columns, in_float


def knee_rank(sorted_logits: Tensor, window: int | None = None) -> Tensor:
    """Return the rank, from 0, of the knee in each row of descending logits [N, V], int64 [N] (Eqs. 8-9).

    Ranks x and logits y are min-max normalised over the window (None: the row). The knee is the rank that
    lies farthest below the anti-diagonal, the argmax of (1 - x) - y, or the first of several such. Padding
    at the end of a row doesn't count. A flat row has its knee at 0.
    """
    y = in_float(sorted_logits)[:, :window]
    last = (~(y <= FLOOR)).sum(-1, keepdim=True).sub(1).clamp(min=0)
    rank = torch.arange(y.shape[-1], device=y.device)
    x = rank.to(y.dtype) / last.clamp(min=1)
    highest, lowest = y[:, :1], y.gather(-1, last)
    y = (y - lowest) / (highest - lowest).clamp(min=torch.finfo(y.dtype).tiny)
    below = ((1 - x) - y).masked_fill(rank > last, -torch.inf)
    return below.argmax(-1)


def effective_k(
    logits: Tensor, *, window: int | None = None, min_k: int = 3, max_k: int | None = None
) -> Tensor:
    """Return the k that dbild takes where these logits [N, V] lead, int64 [N].

    dbild also leaves out columns that are padding in the other model alone, which only it can see.
    """
    return top_knee(logits, absent_columns(logits), window=window, min_k=min_k, max_k=max_k)[1]


@torch.no_grad()
def top_knee(
    logits: Tensor, absent: Tensor, *, window: int | None, min_k: int, max_k: int | None
) -> tuple[Tensor, Tensor]:
    """Return the ids [N, K] of the highest logits, descending, and how many of them each row takes, k [N].

    k is 1 + the knee's rank, kept in [min_k, max_k], and no more than the columns that are not absent. Raises
    ValueError where the bounds can't be met.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be 1 or more, got {window}")
    if min_k < 1 or (max_k is not None and max_k < min_k):
        raise ValueError(f"bounds must be 1 <= min_k <= max_k, got min_k={min_k}, max_k={max_k}")
    sorted_logits, ids = _descending(logits, absent)
    k = (1 + knee_rank(sorted_logits, window)).clamp(min=min_k, max=max_k)
    return _first(ids, k, absent)


@torch.no_grad()
def top(logits: Tensor, absent: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """Return the ids [N, K] of the k highest logits, descending, and k [N]: less where fewer are present."""
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    _, ids = _descending(logits, absent)
    return _first(ids, torch.full_like(ids[:, 0], k), absent)


def _descending(logits: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    """Sort so that equal logits keep the order of their ids, and absent columns come last."""
    return in_float(logits).masked_fill(absent, FLOOR).sort(dim=-1, descending=True, stable=True)


def _first(ids: Tensor, k: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the sorted ids at the longest row."""
    k = k.minimum((~absent).sum(-1))
    return ids[:, : max([2, *k.tolist()])].clone(), k  # a view would keep whole rows until the backward pass
