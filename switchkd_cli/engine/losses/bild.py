"""Bi-directional logits difference: BiLD (2406.13555), which DBiLD makes dynamic."""

from functools import partial

from torch import Tensor

from switchkd_cli.engine.losses.ops.knee import Top
from switchkd_cli.engine.losses.ops.leaders import over_sides
from switchkd_cli.engine.losses.ops.pairwise_kl import teacher_weighted


def bild(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 3.0, k: int = 8) -> Tensor:
    """Return the teacher-led plus the student-led loss for each row of logits [N, V], in nats, [N].

    As DBiLD, with one k for every row and both sides, and with the forward divergence KL(p_T || p_S): the
    weight is the teacher's, whoever leads. The temperature divides the differences; no squared factor.
    """
    divergence = partial(teacher_weighted, temperature=temperature)
    return over_sides(divergence, teacher_logits, student_logits, Top(k))
