"""Generalised Jensen-Shannon divergence over the vocabulary (GKD, 2306.13649)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import log_probabilities, mix


def jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """Return beta KL(p_T || m) + (1 - beta) KL(p_S || m), m = beta p_T + (1 - beta) p_S, in nats, [N].

    p = softmax(z / temperature) of logits [N, V]. At beta 0 and 1 any two models have divergence 0, so beta must lie
    between them (ValueError); the limits, scaled, are forward_kl and reverse_kl.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    log_m = mix(log_t, log_s, "beta", beta)
    return (beta * log_t.exp() * (log_t - log_m) + (1 - beta) * log_s.exp() * (log_s - log_m)).sum(-1)
