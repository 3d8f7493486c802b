"""Projected visual tokens: one half of Align-KD's visual term (2412.01282)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.mse import mean_squares


def token_mse(teacher_tokens: Tensor, student_tokens: Tensor) -> Tensor:
    """Return the mean square of P_S(V_S(x)) - P_T(V_T(x)), tokens [P, M, D], per picture, [P].

    Where their widths differ the student's went through a trained map to the teacher's. Align-KD maps the teacher's to
    the student's, which both could solve by going to 0 (assumption: the other way round is meant to do no worse).
    """
    return mean_squares(teacher_tokens, student_tokens)
