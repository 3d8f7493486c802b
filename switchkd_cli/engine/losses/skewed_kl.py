"""Skewed Kullback-Leibler divergence over the vocabulary (DistiLLM, 2402.03898)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl, log_probabilities, mix


def skewed_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """Return KL(p_T || alpha p_T + (1 - alpha) p_S) for each row of logits [N, V], in nats, [N].

    p = softmax(z / temperature). The teacher's part of the mixture keeps the logarithm bounded where the student has
    no probability. alpha must lie between 0 and 1 (ValueError); its limit 0 is forward_kl.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_t, mix(log_t, log_s, "alpha", alpha))
