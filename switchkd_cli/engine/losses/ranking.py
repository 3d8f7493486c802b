"""The order of ids in place of their probabilities: Plackett-Luce distillation (PLD, 2506.12542), partial ranking (CPRD, 2407.07479)."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import without_padding
from switchkd_cli.ranges import Positive, TwoOrMore


def plackett_luce(
    teacher_logits: Tensor, student_logits: Tensor, targets: Tensor, *, temperature: Positive = 1.0
) -> Tensor:
    """Return -sum_i w_i log p_S(i | the ids ranked i-th or later) for each row of logits [N, V], in nats, [N].

    The target is ranked first, ``targets`` [N] int64, then all other ids as the teacher's logits order them. w is the
    teacher's softmax(z / temperature), so that the first summand is a weighted cross-entropy. A row without a target (a
    negative one) costs 0.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    is_target = torch.arange(teacher.shape[-1], device=targets.device) == targets[:, None]
    order = teacher.masked_fill(is_target, torch.inf).argsort(dim=-1, descending=True, stable=True)
    weights = (teacher / temperature).softmax(-1).gather(-1, order)
    return torch.where(targets >= 0, (weights * _choices(student.gather(-1, order))).sum(-1), 0.0)


def partial_ranking(teacher_logits: Tensor, student_logits: Tensor, *, k: TwoOrMore = 8) -> Tensor:
    """Return how unlikely the teacher's order of the student's top k ids is to the student, for each row [N, V], [N].

    The mean, over all of these but the last, of -log p_S(i | those ranked i-th or later), in nats: only the order of ids
    that the student holds likely counts, and no probability of the teacher's. The source ranks images and texts of a
    batch; ids are our reading.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    likely, ids = student.topk(min(k, student.shape[-1]))
    order = teacher.gather(-1, ids).argsort(dim=-1, descending=True, stable=True)
    return _choices(likely.gather(-1, order))[:, :-1].mean(-1)


def _choices(logits: Tensor) -> Tensor:
    """Return -log softmax of each of the logits [N, K] among itself and those behind it, [N, K]."""
    return logits.flip(-1).logcumsumexp(-1).flip(-1) - logits
