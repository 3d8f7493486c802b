"""The positions of each example side by side, for losses that compare positions with one another."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def group_by_row(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return values [N, ...] as [R, L, ...], one example in each of R, padded with 0, and a mask [R, L] of the values.

    ``rows`` [N] int64 says which example each value belongs to; equal ones are neighbours. ``out[mask]`` is ``values``.
    """
    _, count = rows.unique_consecutive(return_counts=True)
    count = count if len(count) else count.new_zeros(1)  # no value: one example without any
    padded = pad_sequence(values.split(count.tolist()), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=rows.device) < count[:, None]
