"""Sinkhorn distance between the teacher's and the student's predictions of one example (SinKD, 2402.17110)."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.positions import group_by_row
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, without_padding
from switchkd_cli.ranges import Positive, PositiveInt


def sinkhorn(
    teacher_logits: Tensor,
    student_logits: Tensor,
    rows: Tensor,
    *,
    temperature: Positive = 2.0,
    smoothing: Positive = 0.1,
    iterations: PositiveInt = 20,
) -> Tensor:
    """Return the cost of moving each position's p_T to the student's p_S of the same example, [N].

    The L positions of one example (``rows`` [N] int64) are a set on both sides. Moving position i to position j costs
    C_ij = sum |p_T_i - p_S_j|, p = softmax(z / temperature) of logits [N, V]. The plan P is exp(-C / smoothing), made
    doubly stochastic by ``iterations`` Sinkhorn iterations (rows, then columns); the loss of i is sum_j P_ij C_ij.

    The source takes the positions of a mini-batch for the set. Ours are those of one example (assumption), so that
    splitting a step into micro-batches doesn't change the loss. It takes L^2 memory and L^2 V time for each example.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    (p_t, mask), (p_s, _) = (group_by_row((z / temperature).softmax(-1), rows) for z in (teacher, student))
    cost = torch.cdist(p_t, p_s, p=1.0)  # [R, L, L]
    plan = _doubly_stochastic(-cost / smoothing, mask, iterations)
    return (plan * cost).sum(-1)[mask]


def _doubly_stochastic(log_kernel: Tensor, mask: Tensor, iterations: int) -> Tensor:
    """Return exp(log_kernel) [R, L, L] with rows and columns scaled in turn until each sums to 1; 0 outside the mask."""
    inside = mask[:, :, None] & mask[:, None, :]
    log_plan = log_kernel.masked_fill(~inside, FLOOR)
    for _ in range(iterations):
        for axis in (2, 1):
            log_plan = (log_plan - log_plan.logsumexp(axis, keepdim=True)).masked_fill(~inside, FLOOR)
    return log_plan.exp()
