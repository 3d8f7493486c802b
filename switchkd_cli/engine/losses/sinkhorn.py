"""Sinkhorn distance between the teacher's and the student's predictions of one row of data (SinKD, 2402.17110)."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.group_by_row import by_row
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, comparable


def sinkhorn(
    teacher_logits: Tensor,
    student_logits: Tensor,
    rows: Tensor,
    *,
    temperature: float = 2.0,
    smoothing: float = 0.1,
    iterations: int = 20,
) -> Tensor:
    """Return, for each row of logits [N, V], what it costs to carry its p_T to the students' p_S, [N].

    The L positions of one row of data (``rows`` [N] int64) form a set on both sides. Position i costs C_ij = the sum
    of |p_T_i - p_S_j| to position j, p = softmax(z / temperature); the plan P is exp(-C / smoothing) made doubly
    stochastic by so many Sinkhorn iterations (rows, then columns); the loss is sum_j P_ij C_ij.

    The source takes the positions of a mini-batch for the set. Ours are those of one row of data (assumption), so that
    no split of a step into micro-batches changes the loss. Its memory is L^2 a row, its time L^2 V.
    """
    teacher, student = comparable(teacher_logits, student_logits)
    (p_t, mask), (p_s, _) = (by_row((z / temperature).softmax(-1), rows) for z in (teacher, student))
    cost = torch.cdist(p_t, p_s, p=1.0)  # [R, L, L]
    plan = _doubly_stochastic(-cost / smoothing, mask, iterations)
    return (plan * cost).sum(-1)[mask]


def _doubly_stochastic(log_kernel: Tensor, mask: Tensor, iterations: int) -> Tensor:
    """exp(log_kernel) [R, L, L] with rows and columns scaled in turn until each sums to 1; 0 outside the mask."""
    inside = mask[:, :, None] & mask[:, None, :]
    log_plan = log_kernel.masked_fill(~inside, FLOOR)
    for _ in range(iterations):
        for axis in (2, 1):
            log_plan = (log_plan - log_plan.logsumexp(axis, keepdim=True)).masked_fill(~inside, FLOOR)
    return log_plan.exp()
