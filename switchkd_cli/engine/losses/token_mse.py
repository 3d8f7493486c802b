"""Mean squared error of the projected visual tokens: a half of Align-KD's visual term (2412.01282)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.mse import mse_per_image


def token_mse(teacher_tokens: Tensor, student_tokens: Tensor) -> Tensor:
    """Return the mean square of P_S(V_S(x)) - P_T(V_T(x)), tokens [P, M, D], per image, [P].

    Where their widths differ, the student's went through a trained map to the teacher's width. Align-KD maps the
    teacher's to the student's, which both could solve by going to 0 (assumption: our direction does no worse).
    """
    return mse_per_image(teacher_tokens, student_tokens)
