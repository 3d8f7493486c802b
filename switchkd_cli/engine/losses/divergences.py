"""Divergences of two models' probabilities over the vocabulary.

Forward Kullback-Leibler (Hinton et al., 2015), reverse (MiniLLM, 2306.08543), generalised Jensen-Shannon (GKD, 2306.13649), and
skewed, forward and reverse (DistiLLM, 2402.03898).
"""

from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl, log_probabilities, mix


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL(p_T || p_S) for each row of logits [N, V], p = softmax(z / temperature), in nats, [N].

    There is no temperature^2 factor: the term's weight says how much it counts.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_t, log_s)


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL(p_S || p_T) for each row of logits [N, V], p = softmax(z / temperature), in nats, [N].

    There is no temperature^2 factor: the term's weight says how much it counts.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_s, log_t)


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


def skewed_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """Return KL(p_T || alpha p_T + (1 - alpha) p_S) for each row of logits [N, V], in nats, [N].

    p = softmax(z / temperature). The teacher's part of the mixture keeps the logarithm bounded where the student has
    no probability. alpha must lie between 0 and 1 (ValueError); its limit 0 is forward_kl.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_t, mix(log_t, log_s, "alpha", alpha))


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
