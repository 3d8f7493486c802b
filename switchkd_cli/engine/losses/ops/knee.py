"""Kneedle (Satopaa et al., 2011): where the sorted logits of a row turn from steep to flat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.topk import Ranked, down_to_knee, highest
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, absent_columns, filled, in_float, present


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
    return TopKnee(window, min_k, max_k)(logits, absent_columns(logits))[1]


@dataclass(frozen=True)
class TopKnee:
    """Picks a leader's highest ids down to its knee. Raises ValueError where the bounds can't be met.

    window: the knee is sought among so many of the highest logits; None: among all.
    """

    window: int | None
    min_k: int
    max_k: int | None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be 1 or more, got {self.window}")
        if self.min_k < 1 or (self.max_k is not None and self.max_k < self.min_k):
            told = f"min_k={self.min_k}, max_k={self.max_k}"
            raise ValueError(f"bounds must be 1 <= min_k <= max_k, got {told}")

    @torch.no_grad()
    def __call__(self, logits: Tensor, absent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the ids [N, K] of the highest logits [N, V], descending, and how many of them each row takes, k [N].

        k is 1 + the knee's rank, kept in [min_k, max_k], and no more than the columns that are not absent.
        """
        ranked, rank = ranked_to_knee(logits, absent, window=self.window, at_least=self.min_k)
        k = (1 + rank).clamp(min=self.min_k, max=self.max_k)
        return _first(ranked.ids, k, present(logits, absent))


@dataclass(frozen=True)
class Top:
    """Picks a leader's k highest ids: less where fewer are present. Raises ValueError where k is below 1."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be 1 or more, got {self.k}")

    @torch.no_grad()
    def __call__(self, logits: Tensor, absent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the ids [N, K] of the highest logits [N, V], descending, and k [N]."""
        ids = highest(filled(logits, absent), max(self.k, 2)).ids
        return _first(ids, torch.full_like(ids[:, 0], self.k), present(logits, absent))


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
