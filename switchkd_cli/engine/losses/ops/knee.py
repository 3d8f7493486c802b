"""The highest logits of each row, sorted, and Kneedle's rank where they turn from steep to flat (Satopaa et al., 2011).

A loss needs a row's logits up to a knee or a count: of a vocabulary of 151,936, a thirtieth or a few hundred. No row is sorted
whole: a few passes over it find a bound below which none of them lies; the logits above the bound are gathered and sorted. The
result is the beginning of the row's stable sort, bit for bit.

For a count, columns are put into groups: when ``count`` groups have a highest logit at or above the bound, at least
``count`` logits lie there. For a knee, the logits are counted in bins of equal width. A bin's count and place tell, up to
the width of a bin, how far below the anti-diagonal its logits lie; a bin that can't reach the best can't hold the knee.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, at_least_float32, count_columns, mask_padding

GROUPS = 8  # groups of columns for each logit of the count: enough that few of the highest share a group
COLUMNS_PER_BIN = 64
SMALLEST_RANGE = 1e-30  # of a row, when a bin's width is computed from it
ROUNDING = 1e-5  # more than float32's error in a rank or a logit normalised to 0 ... 1


class SortedLogits(NamedTuple):
    """The highest logits of each row: descending, equal ones in the order of their ids."""

    logits: Tensor
    """[N, K]; a row with fewer ends with FLOOR."""
    ids: Tensor
    """[N, K]; 0 where a row has ended."""


def sort_whole_rows(logits: Tensor) -> SortedLogits:
    """Sort whole rows [N, V]: for NaN, infinite and float64 logits, which the bounds are not made for."""
    return SortedLogits(*logits.sort(dim=-1, descending=True, stable=True))


def sort_top_k(logits: Tensor, count: int) -> SortedLogits:
    """Return at least the ``count`` highest of each row of float logits [N, V], or the row if it has fewer."""
    size = logits.shape[-1] // (GROUPS * count)
    if size < 2 or logits.dtype == torch.float64 or logits.amax(-1).isnan().any():
        return sort_whole_rows(logits)
    groups = logits.shape[-1] // size
    highest_of_group = logits[:, : groups * size].unflatten(-1, (size, groups)).amax(-2)
    bound = highest_of_group.topk(count).values[:, -1:]
    return _sort_chosen(logits, _sparse_nonzero((logits >= bound).flatten()))


def sort_to_knee(logits: Tensor, lowest: Tensor, last: Tensor, at_least: int) -> SortedLogits:
    """Return each row of float logits [N, V] sorted up to its knee or beyond, and at least ``at_least`` of it.

    lowest, last [N, 1]: the lowest logit that is not padding, and its rank. Padding is at FLOOR.
    """
    top = logits.amax(-1, keepdim=True)
    spread = top - lowest
    if logits.dtype == torch.float64 or not spread.isfinite().all():
        return sort_whole_rows(logits)
    bins = max(2, logits.shape[-1] // COLUMNS_PER_BIN)
    rows = torch.arange(len(logits), dtype=torch.int32, device=logits.device)[:, None]
    # rounding keeps the order, so all logits of a bin are higher than those of the next
    scale = (bins - 1) / spread.clamp(min=SMALLEST_RANGE)
    place = (top - logits).mul_(scale).clamp_(max=bins - 1).int().add_(rows * bins)
    in_bin = place.flatten().bincount(minlength=len(logits) * bins).view(-1, bins)
    through_bin = in_bin.cumsum(-1)
    depth = torch.arange(bins, device=logits.device)
    gain = depth / (bins - 1) - (through_bin - in_bin) / last.clamp(min=1)
    reaches_best = gain >= gain.amax(-1, keepdim=True) - 1 / (bins - 1) - ROUNDING
    last_bin = (depth * reaches_best).amax(-1).maximum((through_bin < at_least).sum(-1))
    # positive up to the last bin: computed in place, at a third of a comparison's cost
    chosen = torch.sub(last_bin.int()[:, None] + rows * bins + 1, place, out=place).clamp_(min=0)
    return _sort_chosen(logits, chosen.flatten().nonzero()[:, 0])


def _sort_chosen(logits: Tensor, chosen: Tensor) -> SortedLogits:
    """Sort the chosen logits of each row; ``chosen`` are their places among all N V, ascending."""
    row = chosen.div(logits.shape[-1], rounding_mode="trunc")
    ids, values = chosen - row * logits.shape[-1], logits.flatten().index_select(0, chosen)
    order = _sort_keys(row, values).sort(stable=True).indices
    size = row.bincount(minlength=len(logits))
    width = int(size.max()) if len(size) else 1
    first = torch.arange(len(logits), device=row.device) * width - (size.cumsum(0) - size)
    place = torch.arange(len(row), device=row.device) + first[row]
    sorted_logits = logits.new_full((len(logits) * width,), FLOOR).index_copy_(0, place, values[order])
    sorted_ids = ids.new_zeros(len(logits) * width).index_copy_(0, place, ids[order])
    return SortedLogits(sorted_logits.view(len(logits), width), sorted_ids.view(len(logits), width))


def _sort_keys(row: Tensor, values: Tensor) -> Tensor:
    """Return integers that ascend by row and, within a row, as the float32 values descend.

    One sort of integers, a radix sort, costs a fraction of a sort of floats for each row. The bits of a float ascend with
    it from 0 upwards and descend below; adding 0.0 makes the two zeros equal.
    """
    bits = (values + 0.0).view(torch.int32)
    return (row << 32) - (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _sparse_nonzero(mask: Tensor) -> Tensor:
    """Return the places where a mask [N V] is true; fast if few are, as eight are looked at together."""
    if len(mask) % 8:
        return mask.nonzero()[:, 0]
    eights = mask.view(torch.int64).nonzero()[:, 0]
    within = mask.view(-1, 8)[eights].flatten().nonzero()[:, 0]
    return 8 * eights[within // 8] + within % 8


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
