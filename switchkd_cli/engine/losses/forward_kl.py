"""Forward Kullback-Leibler divergence over the vocabulary (Hinton et al., 2015)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl, log_probabilities


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL(p_T || p_S) for each row of logits [N, V], p = softmax(z / temperature), in nats, [N].

    There is no temperature^2 factor: the term's weight says how much it counts.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_t, log_s)
