"""The highest logits of each row, in order, without sorting the whole row.

A loss needs the logits down to a knee or a count: of a vocabulary of 151,936 a thirtieth, or a few hundred. A few
passes over the row find a bound that they certainly reach; what lies above it is picked out and sorted. The result is
the beginning of the stable sort of the row, bit for bit.

For a count, columns are put into groups: as many groups as are asked for have a highest logit at or above the bound,
so as many logits do. For a knee, the logits are counted in bins of equal width. A bin's count and place tell within a
bin's width how far below the anti-diagonal its logits lie, and a bin that can't reach the best can't hold the knee.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import FLOOR

GROUPS = 8  # of columns, for each logit asked for: so many that few of the highest share one
COLUMNS_A_BIN = 64
NARROWEST = 1e-30  # a row's range, where a bin's width is computed from it
ROUNDING = 1e-5  # more than float32 can be wrong by in a rank or a logit normalised to 0 ... 1


class Ranked(NamedTuple):
    """The beginning of rows of sorted logits: descending, equal ones in the order of their ids."""

    logits: Tensor
    """[N, K]; a row that has fewer ends with FLOOR."""
    ids: Tensor
    """[N, K]; 0 behind a row's last."""


def whole(logits: Tensor) -> Ranked:
    """Sort whole rows [N, V]: for what the bounds are not made for, which is NaN, infinite and float64 logits."""
    return Ranked(*logits.sort(dim=-1, descending=True, stable=True))


def highest(logits: Tensor, count: int) -> Ranked:
    """Return at least the ``count`` highest of each row of float logits [N, V], all of a row where it has fewer."""
    size = logits.shape[-1] // (GROUPS * count)
    if size < 2 or logits.dtype == torch.float64 or logits.amax(-1).isnan().any():
        return whole(logits)
    groups = logits.shape[-1] // size
    of_groups = logits[:, : groups * size].unflatten(-1, (size, groups)).amax(-2)
    return _in_order(logits, _few((logits >= of_groups.topk(count).values[:, -1:]).flatten()))


def down_to_knee(logits: Tensor, lowest: Tensor, last: Tensor, at_least: int) -> Ranked:
    """Return each row of float logits [N, V] down to its knee or farther, and no fewer than ``at_least`` of it.

    lowest, last [N, 1]: the lowest logit that is present, and its rank. Absent ones are at FLOOR.
    """
    top = logits.amax(-1, keepdim=True)
    spread = top - lowest
    if logits.dtype == torch.float64 or not spread.isfinite().all():
        return whole(logits)
    bins = max(2, logits.shape[-1] // COLUMNS_A_BIN)
    rows = torch.arange(len(logits), dtype=torch.int32, device=logits.device)[:, None]
    # rounding keeps the order, so that a bin's logits are all higher than the next one's
    scale = (bins - 1) / spread.clamp(min=NARROWEST)
    place = (top - logits).mul_(scale).clamp_(max=bins - 1).int().add_(rows * bins)
    inside = place.flatten().bincount(minlength=len(logits) * bins).view(-1, bins)
    through = inside.cumsum(-1)
    depth = torch.arange(bins, device=logits.device)
    gain = depth / (bins - 1) - (through - inside) / last.clamp(min=1)
    reaches = gain >= gain.amax(-1, keepdim=True) - 1 / (bins - 1) - ROUNDING
    last_bin = (depth * reaches).amax(-1).maximum((through < at_least).sum(-1))
    # above 0 down to the last bin: taken from the numbers at hand, in their place, at a third of a comparison's cost
    chosen = torch.sub(last_bin.int()[:, None] + rows * bins + 1, place, out=place).clamp_(min=0)
    return _in_order(logits, chosen.flatten().nonzero()[:, 0])


def _in_order(logits: Tensor, chosen: Tensor) -> Ranked:
    """Sort the chosen logits of each row; their places in all of [N V] are given, ascending."""
    row = chosen.div(logits.shape[-1], rounding_mode="trunc")
    ids, values = chosen - row * logits.shape[-1], logits.flatten().index_select(0, chosen)
    order = _keys(row, values).sort(stable=True).indices
    size = row.bincount(minlength=len(logits))
    width = int(size.max()) if len(size) else 1
    first = torch.arange(len(logits), device=row.device) * width - (size.cumsum(0) - size)
    place = torch.arange(len(row), device=row.device) + first[row]
    sorted_logits = logits.new_full((len(logits) * width,), FLOOR).index_copy_(0, place, values[order])
    sorted_ids = ids.new_zeros(len(logits) * width).index_copy_(0, place, ids[order])
    return Ranked(sorted_logits.view(len(logits), width), sorted_ids.view(len(logits), width))


def _keys(row: Tensor, values: Tensor) -> Tensor:
    """Integers that ascend by row and, within it, as the float32 values descend.

    One sort of integers costs a fraction of a sort of floats for each row: it is a radix sort. The bits of a float
    ascend with it from 0 upwards and descend below; adding 0.0 makes one of the two zeros.
    """
    bits = (values + 0.0).view(torch.int32)
    return (row << 32) - (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _few(chosen: Tensor) -> Tensor:
    """As ``nonzero`` of a mask [N V], the faster the fewer are true: eight are looked at together."""
    if len(chosen) % 8:
        return chosen.nonzero()[:, 0]
    eights = chosen.view(torch.int64).nonzero()[:, 0]
    within = chosen.view(-1, 8)[eights].flatten().nonzero()[:, 0]
    return 8 * eights[within // 8] + within % 8
