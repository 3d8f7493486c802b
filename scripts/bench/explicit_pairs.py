"""DBiLD computed literally, with every pair as a number: the naive reference."""

from collections.abc import Callable

import torch
from torch import Tensor

Highest = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Logits [N, V] and a count K -> the K highest of each row, descending, and their ids, [N, K] each."""


def dbild_of_pairs(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 3.0,
    window: int | None = None,
    min_k: int = 3,
    cut: bool = False,
    highest: Highest = torch.topk,
) -> Tensor:
    """DBiLD [N] of logits [N, V]; equals the package's `dbild` where no column is padding.

    All pairs i < j of the window's ids are written out, [N, W (W - 1) / 2], and those beyond a row's own k are masked: no
    shape depends on the data. With `cut`, only the pairs of the longest row's k: fewer, but the sizes have to be read from
    the device first. `highest` finds the window. Sums are in the logits' own dtype.
    """
    pair = teacher_logits.detach(), student_logits
    return sum(_led(leader.detach(), *pair, temperature, window, min_k, cut, highest) for leader in pair)


def of_sorted_rows(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the same as `torch.topk` by sorting, as Algorithm 2 says."""
    return tuple(found[:, :count] for found in logits.sort(dim=-1, descending=True))


def _led(
    leader: Tensor,
    teacher: Tensor,
    student: Tensor,
    temperature: float,
    window: int | None,
    min_k: int,
    cut: bool,
    highest: Highest,
) -> Tensor:
    """Return one side: KL(p_S || p_T) over the pairs of the leader's top ids."""
    best, ids = highest(leader, min(window or leader.shape[-1], leader.shape[-1]))
    k = (1 + _knee(best)).clamp(min=min_k, max=best.shape[-1])
    width = int(k.max()) if cut else best.shape[-1]
    i, j = torch.triu_indices(width, width, 1, device=ids.device)
    outside = j >= k[:, None]
    log_p, log_q = (
        _log_shares(logits.gather(-1, ids[:, :width]), i, j, outside, temperature) for logits in (student, teacher)
    )
    return (log_p.exp() * (log_p - log_q)).masked_fill(outside, 0.0).sum(-1)


def _log_shares(values: Tensor, i: Tensor, j: Tensor, outside: Tensor, temperature: float) -> Tensor:
    """Return the log-softmax over the pairs' differences, [N, pairs]."""
    differences = (values[:, i] - values[:, j]) / temperature
    return differences.masked_fill(outside, -1e30).log_softmax(-1)


def _knee(best: Tensor) -> Tensor:
    """Return Kneedle's rank: where the curve is farthest below the line from the first to the last value."""
    x = torch.linspace(0, 1, best.shape[-1], dtype=best.dtype, device=best.device)
    y = (best - best[:, -1:]) / (best[:, :1] - best[:, -1:])
    return (1 - x - y).argmax(-1)
