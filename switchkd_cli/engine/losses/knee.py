"""Kneedle (Satopaa et al., 2011): where the sorted logits of a row turn from steep to flat."""

import torch
from torch import Tensor

from .columns import FLOOR, absent_columns, filled, in_float, present
from .highest import Ranked, down_to_knee, highest


def knee_rank(sorted_logits: Tensor, window: int | None = None) -> Tensor:
    """Return the rank, from 0, of the knee in each row of descending logits [N, V], int64 [N] (Eqs. 8-9).

    Ranks x and logits y are min-max normalised over the window (None: the row). The knee is the rank that
    lies farthest below the anti-diagonal, the argmax of (1 - x) - y, or the first of several such. Padding
    at the end of a row doesn't count. A flat row has its knee at 0.
    """
    y = in_float(sorted_logits)[:, :window]
    last = (~(y <= FLOOR)).sum(-1, keepdim=True).sub(1).clamp(min=0)
    return _farthest_below(y, y.gather(-1, last), last)


def effective_k(
    logits: Tensor, *, window: int | None = None, min_k: int = 3, max_k: int | None = None
) -> Tensor:
    """Return the k that dbild takes where these logits [N, V] lead, int64 [N].

    dbild also leaves out columns that are padding in the other model alone, which only it can see.
    """
    return top_knee(logits, absent_columns(logits), window=window, min_k=min_k, max_k=max_k)[1]


@torch.no_grad()
def top_knee(
    logits: Tensor, absent: Tensor | None, *, window: int | None, min_k: int, max_k: int | None
) -> tuple[Tensor, Tensor]:
    """Return the ids [N, K] of the highest logits, descending, and how many of them each row takes, k [N].

    k is 1 + the knee's rank, kept in [min_k, max_k], and no more than the columns that are not absent. Raises
    ValueError where the bounds can't be met.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be 1 or more, got {window}")
    if min_k < 1 or (max_k is not None and max_k < min_k):
        raise ValueError(f"bounds must be 1 <= min_k <= max_k, got min_k={min_k}, max_k={max_k}")
    ranked, rank = ranked_to_knee(logits, absent, window=window, at_least=min_k)
    return _first(ranked.ids, (1 + rank).clamp(min=min_k, max=max_k), present(logits, absent))


@torch.no_grad()
def top(logits: Tensor, absent: Tensor | None, *, k: int) -> tuple[Tensor, Tensor]:
    """Return the ids [N, K] of the k highest logits, descending, and k [N]: less where fewer are present."""
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    ids = highest(filled(logits, absent), max(k, 2)).ids
    return _first(ids, torch.full_like(ids[:, 0], k), present(logits, absent))


def ranked_to_knee(
    logits: Tensor, absent: Tensor | None, *, window: int | None, at_least: int
) -> tuple[Ranked, Tensor]:
    """Return the beginning of rows of sorted logits [N, V], down to the knee or farther, and the knee's rank [N]."""
    at_least = max(at_least, 2)
    z = filled(logits, absent)
    if window is not None:
        ranked = highest(z, max(window, at_least))
        return ranked, knee_rank(ranked.logits, window)
    lowest = filled(z, absent, torch.inf).amin(-1, keepdim=True)
    last = present(logits, absent)[:, None] - 1
    ranked = down_to_knee(z, lowest, last, at_least)
    return ranked, _farthest_below(ranked.logits, lowest, last)


def _farthest_below(y: Tensor, lowest: Tensor, last: Tensor) -> Tensor:
    """The knee's rank [N] in the beginning y [N, K] of sorted rows that end at rank ``last`` with ``lowest``."""
    x = torch.arange(y.shape[-1], device=y.device).to(y.dtype) / last.clamp(min=1)
    height = (y - lowest) / (y[:, :1] - lowest).clamp(min=torch.finfo(y.dtype).tiny)
    return ((1 - x) - height).masked_fill(y <= FLOOR, -torch.inf).argmax(-1)


def _first(ids: Tensor, k: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the sorted ids at the longest row."""
    k = k.minimum(present)
    return ids[:, : max([2, *k.tolist()])].clone(), k  # a view would keep whole rows until the backward pass
