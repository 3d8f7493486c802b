"""Skewed reverse Kullback-Leibler divergence over the vocabulary (DistiLLM, 2402.03898)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl, log_probabilities, mix


def skewed_reverse_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """Return KL(p_S || alpha p_S + (1 - alpha) p_T) for each row of logits [N, V], in nats, [N].

    p = softmax(z / temperature). The student's part of the mixture keeps the logarithm bounded where the teacher has
    no probability: no row costs more than -log(alpha). The gradient also goes through that part. alpha must lie
    between 0 and 1 (ValueError); its limit 0 is reverse_kl.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_s, mix(log_s, log_t, "alpha", alpha))
