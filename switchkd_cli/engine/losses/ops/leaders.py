"""Losses over a leader's highest logits: each leader (teacher, student) selects ids, on which both models are compared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32, padding_columns

BLOCK = 2**24
"""Logits that are sorted together: it bounds the memory of the search for the highest to a few hundred MiB."""

Loss = Callable[..., Tensor]
Select = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
Compare = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the teacher's and the student's logits [N, K] on a leader's ids, of which row n uses its first k[n], to its loss [N]."""

_SELECTED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The teacher's logits -> what was selected of them, which Align and VSD share. An entry goes when the logits do."""


def at_knees_of(*sides: str) -> Callable[[Loss], Loss]:
    """Declare which sides ("teacher", "student") lead a loss, each at the knee of its sorted logits.

    The loss takes ``window``, ``min_k`` and ``max_k``. registry.py reads the declaration from the source; diagnostics
    and figures of the knees follow from it.
    """
    return lambda loss: loss


def sum_over_leaders(
    compare: Compare,
    teacher_logits: Tensor,
    student_logits: Tensor,
    select: Select,
    *,
    leaders: tuple[str, ...] = ("teacher", "student"),
) -> Tensor:
    """Return the sum over its leaders of a loss of two logits [N, V], [N], computed a block of rows at a time.

    ``select(logits, padding)`` returns a leader's ids [N, K] and k [N]; losses with equal selectors share what is
    selected from the same teacher's logits. ``compare(teacher, student, k)`` returns the loss of one leader [N]; each row's
    loss depends on this row alone. The teacher gets no gradient.
    """
    version = None if teacher_logits.is_inference() else teacher_logits._version  # counts in-place changes
    selected = _SELECTED.setdefault(teacher_logits, {}).setdefault((select, version), {})
    return _SumOverLeaders.apply(student_logits, teacher_logits.detach(), compare, select, leaders, selected)


class _SumOverLeaders(torch.autograd.Function):
    """The loss and its gradient in one pass: of each block of rows only the ids and the gradient on them are kept.

    The gradient is one tensor [N, V], to which each leader adds at its ids.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        compare: Compare,
        select: Select,
        leaders: Sequence[str],
        selected: dict[tuple[int, int], tuple[Tensor, Tensor]],
    ) -> Tensor:
        rows = max(1, BLOCK // student.shape[-1])
        needs_gradient = ctx.needs_input_grad[0]
        values, saved = [], []
        blocks = zip(teacher.split(rows), student.split(rows), strict=True)
        for number, (of_teacher, of_student) in enumerate(blocks):
            padding = padding_columns(of_teacher, of_student)
            total = student.new_zeros(())
            for leader in leaders:
                if leader == "student":
                    ids, k = select(of_student, padding)
                elif padding is not None:
                    ids, k = select(of_teacher, padding)
                else:  # the same whatever student it is compared with
                    if (rows, number) not in selected:
                        selected[rows, number] = select(of_teacher, None)
                    ids, k = selected[rows, number]
                on_ids = at_least_float32(of_student.gather(-1, ids)).requires_grad_(needs_gradient)
                with torch.set_grad_enabled(needs_gradient):
                    value = compare(at_least_float32(of_teacher.gather(-1, ids)), on_ids, k)
                    if needs_gradient:
                        saved += [ids, *torch.autograd.grad(value.sum(), on_ids)]
                total = total + value.detach()
            values.append(total)
        ctx.rows, ctx.leaders, ctx.shape, ctx.like = rows, len(leaders), student.shape, student.new_empty(0)
        ctx.save_for_backward(*saved)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradient = ctx.like.new_zeros(ctx.shape)
        saved = iter(ctx.saved_tensors)
        for block, of_block in zip(gradient.split(ctx.rows), grad.split(ctx.rows), strict=True):
            for _ in range(ctx.leaders):
                ids, on_ids = next(saved), next(saved)
                block.scatter_add_(-1, ids, (of_block[:, None] * on_ids).to(block.dtype))
        return gradient, None, None, None, None, None
