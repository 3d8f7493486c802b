"""Bi-directional logits difference: BiLD (2406.13555), which DBiLD makes dynamic."""

from functools import partial

from torch import Tensor

from .differences import teacher_weighted
from .knee import Top
from .sides import over_sides


def bild(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 3.0, k: int = 8) -> Tensor:
    """Return the teacher-led plus the student-led loss for each row of logits [N, V], in nats, [N].

    As DBiLD, with one k for every row and both sides, and with the forward divergence KL(p_T || p_S): the
    weight is the teacher's, whoever leads. The temperature divides the differences; no squared factor.
    """
    divergence = partial(teacher_weighted, temperature=temperature)
    return over_sides(divergence, teacher_logits, student_logits, Top(k))
