"""Both sides of a loss over the highest logits: who leads, which ids it picks, what is compared on them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .columns import absent_columns, in_float

BLOCK = 2**24
"""Logits looked at together: bounds the memory of the search for the highest to a few hundred MiB."""

Loss = Callable[..., Tensor]
Select = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Led(NamedTuple):
    """One side: both models' logits [N, K] on the leader's top ids; row n takes its first k[n] of them."""

    teacher: Tensor
    student: Tensor
    k: Tensor


def at_knees_of(*sides: str) -> Callable[[Loss], Loss]:
    """Declare which sides ("teacher", "student") lead a loss, each at the knee of its sorted logits.

    The loss takes ``window``, ``min_k`` and ``max_k``. The declaration is read from the text (registry.py): what is
    diagnosed and drawn of a term's knees follows from it.
    """
    return lambda loss: loss


def over_sides(
    compare: Callable[[Led], Tensor],
    teacher_logits: Tensor,
    student_logits: Tensor,
    select: Select,
    *,
    leaders: tuple[str, ...] = ("teacher", "student"),
) -> Tensor:
    """Return the sum over its sides of a loss of two logits [N, V], [N], computed a block of rows at a time.

    ``select(logits, absent)`` returns a leader's ids [N, K] and k [N]. ``compare(side)`` returns the side's loss [N];
    a row's depends on this row alone. The teacher gets no gradient.
    """
    return _OverSides.apply(student_logits, teacher_logits.detach(), compare, select, leaders)


class _OverSides(torch.autograd.Function):
    """The loss and its slopes at once: of a block of rows only the ids and their slopes outlive it.

    The gradient is one tensor [N, V], to which each side adds at its ids.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, compare, select: Select, leaders) -> Tensor:
        rows = max(1, BLOCK // student.shape[-1])
        found = [
            _block(*block, compare, select, leaders, ctx.needs_input_grad[0])
            for block in zip(teacher.split(rows), student.split(rows), strict=True)
        ]
        ctx.rows, ctx.leaders, ctx.shape, ctx.like = rows, len(leaders), student.shape, student.new_empty(0)
        ctx.save_for_backward(*(kept for _, slopes in found for pair in slopes for kept in pair))
        return torch.cat([value for value, _ in found])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        whole = ctx.like.new_zeros(ctx.shape)
        saved = iter(ctx.saved_tensors)
        for block, of in zip(whole.split(ctx.rows), grad.split(ctx.rows), strict=True):
            for _ in range(ctx.leaders):
                ids, slope = next(saved), next(saved)
                block.scatter_add_(-1, ids, (of[:, None] * slope).to(block.dtype))
        return whole, None, None, None, None


def _block(teacher: Tensor, student: Tensor, compare, select: Select, leaders, needs_slopes: bool):
    absent = absent_columns(teacher, student)
    total, slopes = 0.0, []
    for leader in leaders:
        ids, k = select({"teacher": teacher, "student": student}[leader], absent)
        side = Led(in_float(teacher.gather(-1, ids)), in_float(student.gather(-1, ids)), k)
        with torch.set_grad_enabled(needs_slopes):
            value = compare(side._replace(student=side.student.requires_grad_(needs_slopes)))
            if needs_slopes:
                slopes.append((ids, *torch.autograd.grad(value.sum(), side.student)))
        total = total + value.detach()
    return total, slopes
