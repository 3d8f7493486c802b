"""Decoupled knowledge distillation: the target's probability and the others' apart (DKD, 2203.08679, Eq. 7)."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, without_padding


def decoupled_kd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """Return alpha TCKD + beta NCKD for each row of logits [N, V], in nats, [N].

    With p = softmax(z / temperature) and the target's probability b = p[target], ``targets`` [N] int64: TCKD is
    KL(b_T || b_S) between the two-way distributions (b, 1 - b); NCKD is KL(q_T || q_S), q = softmax(z / temperature)
    over all columns except the target. KL(p_T || p_S) is TCKD + (1 - b_T) NCKD: here the teacher's confidence doesn't
    make NCKD small. There is no temperature^2 factor. A row without a target (a negative one) costs 0.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    is_target = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, targets.clamp(min=0)[:, None], True)
    two_t, two_s = (_two_way(z / temperature, is_target) for z in (teacher, student))
    rest_t, rest_s = ((z / temperature).masked_fill(is_target, FLOOR).log_softmax(-1) for z in (teacher, student))
    loss = alpha * kl(two_t, two_s) + beta * kl(rest_t, rest_s)
    return torch.where(targets >= 0, loss, 0.0)


def _two_way(z: Tensor, is_target: Tensor) -> Tensor:
    """Return log (b, 1 - b), [N, 2]."""
    target = z.masked_fill(~is_target, 0.0).sum(-1)
    rest = z.masked_fill(is_target, FLOOR).logsumexp(-1)
    return torch.stack([target, rest], -1).log_softmax(-1)
