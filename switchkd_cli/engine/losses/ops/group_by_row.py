"""The positions of each example side by side, for losses that compare positions with one another."""

import torch
from torch import Tensor


def group_by_row(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return values [N, ...] as [R, L, ...], one example in each of R, padded with 0, and a mask [R, L] of the values.

    ``rows`` [N] int64 says which example each value belongs to; equal ones are neighbours. ``out[mask]`` is ``values``.
    """
    _, group, count = rows.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[group]
    shape = (len(count), int(count.max()) if len(count) else 0)
    padded = values.new_zeros(*shape, *values.shape[1:]).index_put((group, place), values)
    mask = torch.zeros(shape, dtype=torch.bool, device=rows.device).index_put(
        (group, place), torch.ones_like(rows, dtype=torch.bool)
    )
    return padded, mask
