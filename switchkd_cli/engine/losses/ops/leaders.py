"""Both sides of a loss over the highest logits: who leads, which ids it picks, what is compared on them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from switchkd_cli.engine.losses.ops.vocabulary import absent_columns, in_float

BLOCK = 2**24
"""Logits looked at together: bounds the memory of the search for the highest to a few hundred MiB."""

Loss = Callable[..., Tensor]
Select = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
Block = tuple[int, int]  # rows of a block, and which of them it is
Pick = Callable[[str, Tensor, Tensor | None], tuple[Tensor, Tensor]]

_LEADS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The teacher's logits -> what was picked of them: Align and VSD have one teacher. It is gone when they are."""


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

    ``select(logits, absent)`` returns a leader's ids [N, K] and k [N]; losses with equal ones share what is picked of
    the same teacher's logits. ``compare(side)`` returns the side's loss [N]; a row's depends on this row alone. The
    teacher gets no gradient.
    """
    changes = None if teacher_logits.is_inference() else teacher_logits._version  # in place, so far
    leads = _LEADS.setdefault(teacher_logits, {}).setdefault((select, changes), {})
    return _OverSides.apply(student_logits, teacher_logits.detach(), compare, select, leaders, leads)


class _OverSides(torch.autograd.Function):
    """The loss and its slopes at once: of a block of rows only the ids and their slopes outlive it.

    The gradient is one tensor [N, V], to which each side adds at its ids.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, compare, select: Select, leaders, leads) -> Tensor:
        rows = max(1, BLOCK // student.shape[-1])
        blocks = zip(teacher.split(rows), student.split(rows), strict=True)
        found = [
            _block(*block, compare, _picking(select, leads, (rows, number)), leaders, ctx.needs_input_grad[0])
            for number, block in enumerate(blocks)
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
        return whole, None, None, None, None, None


def _picking(select: Select, leads: dict[Block, tuple[Tensor, Tensor]], block: Block) -> Pick:
    """How a block's ids are picked. Where no column is absent the teacher's are the same beside every student."""

    def pick(leader: str, logits: Tensor, absent: Tensor | None) -> tuple[Tensor, Tensor]:
        if leader != "teacher" or absent is not None:
            return select(logits, absent)
        if block not in leads:
            leads[block] = select(logits, None)
        return leads[block]

    return pick


def _block(teacher: Tensor, student: Tensor, compare, pick: Pick, leaders, needs_slopes: bool):
    absent = absent_columns(teacher, student)
    total, slopes = 0.0, []
    for leader in leaders:
        ids, k = pick(leader, {"teacher": teacher, "student": student}[leader], absent)
        side = Led(in_float(teacher.gather(-1, ids)), in_float(student.gather(-1, ids)), k)
        with torch.set_grad_enabled(needs_slopes):
            value = compare(side._replace(student=side.student.requires_grad_(needs_slopes)))
            if needs_slopes:
                slopes.append((ids, *torch.autograd.grad(value.sum(), side.student)))
        total = total + value.detach()
    return total, slopes
