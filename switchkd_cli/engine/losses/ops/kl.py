"""Kullback-Leibler divergence between log-probabilities, and log-probabilities of two models' logits."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import without_padding


def log_probabilities(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log softmax(z / temperature) of both logits [N, V], without padding columns, the teacher's detached."""
    teacher, student = without_padding(teacher_logits, student_logits)
    return (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis, in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
