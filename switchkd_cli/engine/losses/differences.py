"""Softmax over the differences of all pairs, in time and memory linear in k.

Given u_0 ... u_{k-1}, the pair i < j has the probability p_ij = exp(u_i - u_j) / Z(u); given v, q_ij
likewise. There are k (k - 1) / 2 pairs, but the sums over them that the divergence needs factor into
cumulative sums:

    first_i    = sum_{j>i} p_ij    i is the first of a pair:     proportional to exp(u_i) sum_{j>i} exp(-u_j)
    second_j   = sum_{i<j} p_ij    j is the second of a pair:    proportional to exp(-u_j) sum_{i<j} exp(u_i)
    Z(u)       = sum_j exp(-u_j) sum_{i<j} exp(u_i)
    KL(p || q) = E_p[(u_i - u_j) - (v_i - v_j)] - log Z(u) + log Z(v)
               = <first - second, u - v> - log Z(u) + log Z(v)

This is exact. The knee of a whole vocabulary of 151,936 lies near k = 5,000: ten million pairs a row.
"""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .columns import FLOOR, absent_columns, in_float

BLOCK = 2**24  # logits sorted at a time: bounds the memory of a sort to a few hundred MiB

Loss = Callable[..., Tensor]
Select = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Led(NamedTuple):
    """One side: both models' logits [N, K] on the leader's top ids; row n takes its first k[n] of them."""

    teacher: Tensor
    student: Tensor
    k: Tensor


def in_row_blocks(loss: Loss) -> Loss:
    """Compute a loss a block of rows at a time; rows don't depend on one another."""

    @wraps(loss)
    def blockwise(teacher_logits: Tensor, student_logits: Tensor, **parameters) -> Tensor:
        rows = max(1, BLOCK // teacher_logits.shape[-1])
        blocks = zip(teacher_logits.split(rows), student_logits.split(rows), strict=True)
        return torch.cat([loss(teacher, student, **parameters) for teacher, student in blocks])

    return blockwise


def at_knees_of(*sides: str) -> Callable[[Loss], Loss]:
    """Declare which sides ("teacher", "student") lead a loss, each at the knee of its sorted logits.

    The loss takes ``window``, ``min_k`` and ``max_k``, and is computed a block of rows at a time. The declaration is
    read from the text (registry.py): what is diagnosed and drawn of a term's knees follows from it.
    """
    return in_row_blocks


def led_side(leader: Tensor, teacher_logits: Tensor, student_logits: Tensor, select: Select) -> Led:
    """Return the side of two logits [N, V] that the leader, one of them, leads.

    ``select(logits, absent)`` returns the leader's ids [N, K] and k [N], which carry no gradient. The
    student's logits on these ids do, and autograd keeps none of the other columns.
    """
    return _led(
        leader, teacher_logits, student_logits, absent_columns(teacher_logits, student_logits), select
    )


def led_sides(teacher_logits: Tensor, student_logits: Tensor, select: Select) -> tuple[Led, Led]:
    """Return the teacher-led and the student-led side of two logits [N, V], each as ``led_side`` does."""
    pair = teacher_logits, student_logits
    absent = absent_columns(*pair)
    return _led(teacher_logits, *pair, absent, select), _led(student_logits, *pair, absent, select)


def difference_kl(of: Tensor, to: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Return KL(p || q) in nats, [N], over the pairs of ``of`` [N, K] (p) and of ``to`` [N, K] (q).

    Row n takes its first k[n] values; fewer than two make no pair, and the loss is 0. The inside is
    float64, as the divergence of two close models is a small difference of large numbers, and is computed
    again in the backward pass, so that only its inputs stay in memory.
    """
    loss = checkpoint(_difference_kl, of, to, k, temperature, use_reentrant=False, preserve_rng_state=False)
    return loss.to(of.dtype)


def _led(leader: Tensor, teacher: Tensor, student: Tensor, absent: Tensor, select: Select) -> Led:
    ids, k = select(leader, absent)
    row = torch.arange(len(ids), device=ids.device)[:, None]
    # indexed, as gather would keep the whole [N, V] for its backward pass
    return Led(in_float(teacher.detach()[row, ids]), in_float(student[row, ids]), k)


def _difference_kl(of: Tensor, to: Tensor, k: Tensor, temperature: float) -> Tensor:
    kept = torch.arange(of.shape[-1], device=of.device) < torch.where(k < 2, 0, k)[:, None]
    u, v = (torch.where(kept, values.double() / temperature, 0.0) for values in (of, to))
    log_first, log_second = _log_first(u, kept), _log_second(u, kept)
    gap = u - v
    mean_gap = (log_first.softmax(-1) * gap[:, :-1]).sum(-1) - (log_second.softmax(-1) * gap[:, 1:]).sum(-1)
    return mean_gap - log_second.logsumexp(-1) + _log_second(v, kept).logsumexp(-1)


def _log_first(u: Tensor, kept: Tensor) -> Tensor:
    """Return log(Z first_i) for i = 0 ... K - 2."""
    after = torch.where(kept, -u, FLOOR).flip(-1).logcumsumexp(-1).flip(-1)
    return u[:, :-1] + after[:, 1:]


def _log_second(u: Tensor, kept: Tensor) -> Tensor:
    """Return log(Z second_j) for j = 1 ... K - 1; their sum is Z."""
    before = u.logcumsumexp(-1)
    return torch.where(kept[:, 1:], before[:, :-1] - u[:, 1:], FLOOR)
