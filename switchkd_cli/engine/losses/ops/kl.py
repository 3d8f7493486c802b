"""Kullback-Leibler divergence between log-probabilities, and log-probabilities of two models' logits."""

from math import log

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import without_padding


def log_probabilities(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log softmax(z / temperature) of both logits [N, V], without padding columns, the teacher's detached."""
    teacher, student = without_padding(teacher_logits, student_logits)
    return (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis, in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mix(log_p: Tensor, log_q: Tensor, name: str, share: float) -> Tensor:
    """Return log(share p + (1 - share) q). Raises ValueError, naming the share, unless it lies between 0 and 1."""
    if not 0 < share < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {share}")
    return torch.logaddexp(log_p + log(share), log_q + log(1 - share))
