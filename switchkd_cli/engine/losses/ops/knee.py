"""Kneedle (Satopaa et al., 2011): the rank where the sorted logits of a row turn from steep to flat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.topk import SortedLogits, sort_to_knee, sort_top_k
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, at_least_float32, count_columns, mask_padding


def knee_rank(sorted_logits: Tensor, window: int | None = None) -> Tensor:
    """Return the rank, from 0, of the knee in each row of descending logits [N, V], int64 [N] (Eqs. 8-9).

    Ranks x and logits y are min-max normalised over the window (None: the row). The knee is the rank farthest below the
    anti-diagonal, the argmax of (1 - x) - y; of several such ranks the first. Padding at the end of a row doesn't
    count. A flat row has its knee at 0.
    """
    y = at_least_float32(sorted_logits)[:, :window]
    last = (~(y <= FLOOR)).sum(-1, keepdim=True).sub(1).clamp(min=0)
    return _farthest_below(y, y.gather(-1, last), last)


@dataclass(frozen=True)
class TopKAtKnee:
    """Selects a leader's highest ids up to its knee; min_k = max_k are a fixed number.

    window: search the knee among this many of the highest logits; None: among all.
    """

    window: int | None
    min_k: int
    max_k: int | None

    @torch.no_grad()
    def __call__(self, logits: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the ids [N, K] of the highest logits [N, V], descending, and k, how many of them each row takes, [N]."""
        top, _, k = self.search(logits, padding)
        return top.ids[:, : max([2, *k.tolist()])].clone(), k  # a view would hold whole rows until the backward pass

    def search(self, logits: Tensor, padding: Tensor | None) -> tuple[SortedLogits, Tensor, Tensor]:
        """Return the rows of logits [N, V] sorted up to the knee or beyond it, the knee's rank [N], and k [N].

        k is 1 + the knee's rank, clamped to [min_k, max_k], and at most the number of columns that are not padding.
        """
        z, columns, at_least = mask_padding(logits, padding), count_columns(logits, padding), max(self.min_k, 2)
        if self.window is not None:
            top = sort_top_k(z, max(self.window, at_least))
            rank = knee_rank(top.logits, self.window)
        else:
            lowest, last = mask_padding(z, padding, torch.inf).amin(-1, keepdim=True), columns[:, None] - 1
            top = sort_to_knee(z, lowest, last, at_least)
            rank = _farthest_below(top.logits, lowest, last)
        return top, rank, (1 + rank).clamp(min=self.min_k, max=self.max_k).minimum(columns)


def _farthest_below(y: Tensor, lowest: Tensor, last: Tensor) -> Tensor:
    """Return the knee's rank [N] in y [N, K], the highest logits of sorted rows that end at rank ``last`` with ``lowest``."""
    x = torch.arange(y.shape[-1], device=y.device).to(y.dtype) / last.clamp(min=1)
    height = (y - lowest) / (y[:, :1] - lowest).clamp(min=torch.finfo(y.dtype).tiny)
    return ((1 - x) - height).masked_fill(y <= FLOOR, -torch.inf).argmax(-1)
