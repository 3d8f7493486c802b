"""Forward Kullback-Leibler divergence over the vocabulary (Hinton et al., 2015)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import without_padding


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL(p_T || p_S) for each row of logits [N, V], p = softmax(z / temperature), in nats, [N].

    There is no temperature^2 factor: the term's weight says how much it counts.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    log_t, log_s = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)
