"""Reverse Kullback-Leibler divergence over the vocabulary (MiniLLM, 2306.08543)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl, log_probabilities


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL(p_S || p_T) for each row of logits [N, V], p = softmax(z / temperature), in nats, [N].

    There is no temperature^2 factor: the term's weight says how much it counts.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_s, log_t)
