"""Bi-directional logits difference: BiLD (2406.13555), which DBiLD makes dynamic."""

from functools import partial

from torch import Tensor

from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.losses.ops.leaders import sum_over_leaders
from switchkd_cli.engine.losses.ops.pairwise_kl import forward_pairwise_kl


def bild(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 3.0, k: int = 8) -> Tensor:
    """Return the teacher-led plus the student-led loss for each row of logits [N, V], in nats, [N].

    As DBiLD, with the same k for every row and both leaders, and with the forward divergence KL(p_T || p_S): the
    teacher's probabilities are the weights, whichever model leads. The temperature divides the differences; there is no squared
    factor. Raises ValueError for k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    compare, select = partial(forward_pairwise_kl, temperature=temperature), TopKAtKnee(window=k, min_k=k, max_k=k)
    return sum_over_leaders(compare, teacher_logits, student_logits, select)
