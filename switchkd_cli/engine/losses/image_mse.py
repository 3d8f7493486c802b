"""Mean squared errors, image by image, of the vision towers' features and of visual tokens.

FitNets (1412.6550) between two towers; and the two halves of Align-KD's visual term (2412.01282): all projected visual tokens, or
the most attended ones.
"""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32


def feature_mse(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the mean square of V_S(x) - V_T(x), features [P, F, W] in front of the projectors, per image, [P].

    Between towers that start equal it starts at 0 and keeps the student's tower near where it started.
    """
    return mse_per_image(teacher_features, student_features)


def token_mse(teacher_tokens: Tensor, student_tokens: Tensor) -> Tensor:
    """Return the mean square of P_S(V_S(x)) - P_T(V_T(x)), tokens [P, M, D], per image, [P].

    Where their widths differ, the student's went through a trained map to the teacher's width. Align-KD maps the
    teacher's to the student's, which both could solve by going to 0 (assumption: our direction does no worse).
    """
    return mse_per_image(teacher_tokens, student_tokens)


def attended_token_mse(
    teacher_tokens: Tensor, student_tokens: Tensor, teacher_attention: Tensor, *, k: int = 16
) -> Tensor:
    """Return the mean square of P_S(V_S(x)) - P_T(V_T(x)) over the k most attended of M tokens [P, M, D], [P].

    Tokens are ranked by the attention that the teacher's first layer gives them, ``teacher_attention`` [P, T, M, H]
    summed over text queries and heads; of equal ones the first. With M at most k, all tokens count. Raises ValueError
    for k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    attention = teacher_attention.detach().sum((1, 3))
    top = attention.argsort(dim=1, descending=True, stable=True)[:, :k]
    image = torch.arange(len(top), device=top.device)[:, None]
    return mse_per_image(teacher_tokens[image, top], student_tokens[image, top])


def mse_per_image(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean of (student - teacher)^2 over all axes of [P, ...] except the first, [P]; the teacher is detached."""
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    return difference.square().flatten(1).mean(-1)
