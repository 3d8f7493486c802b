"""Positions of one row of data beside one another, for losses that compare positions with each other."""

import torch
from torch import Tensor


def by_row(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return values [N, ...] as [R, L, ...], a row of data each, and a mask [R, L] of where there are any.

    ``rows`` [N] int64 says whose each is, equal ones in sequence. Filled up with 0. ``out[mask]`` are the values again.
    """
    _, group, count = rows.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[group]
    shape = (len(count), int(count.max()) if len(count) else 0)
    padded = values.new_zeros(*shape, *values.shape[1:]).index_put((group, place), values)
    mask = torch.zeros(shape, dtype=torch.bool, device=rows.device).index_put(
        (group, place), torch.ones_like(rows, dtype=torch.bool)
    )
    return padded, mask
