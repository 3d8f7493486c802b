"""Skewed reverse Kullback-Leibler divergence over the vocabulary (DistiLLM, 2402.03898)."""

from math import log

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import without_padding


def skewed_reverse_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """Return KL(p_S || alpha p_S + (1 - alpha) p_T) for each row of logits [N, V], in nats, [N].

    p = softmax(z / temperature). The student's part of the mixture keeps the logarithm bounded where the teacher has
    no probability: no row costs more than -log(alpha). The gradient also goes through that part. alpha must lie
    between 0 and 1 (ValueError); its limit 0 is reverse_kl.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    teacher, student = without_padding(teacher_logits, student_logits)
    log_t, log_s = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    log_m = torch.logaddexp(log_s + log(alpha), log_t + log(1 - alpha))
    return (log_s.exp() * (log_s - log_m)).sum(-1)
