"""Projected visual tokens that the text looks at: the other half of Align-KD's visual term (2412.01282)."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.mse import mean_squares


def attended_token_mse(
    teacher_tokens: Tensor, student_tokens: Tensor, teacher_attention: Tensor, *, k: int = 16
) -> Tensor:
    """Return the mean square of P_S(V_S(x)) - P_T(V_T(x)) over the k most attended of M tokens [P, M, D], [P].

    A token's rank is the attention that the teacher's first layer gives it, ``teacher_attention`` [P, T, M, H], summed
    over text queries and heads (the first of equals). All tokens where there are no more than k. Raises ValueError for k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    attended = teacher_attention.detach().sum((1, 3))
    best = attended.argsort(dim=1, descending=True, stable=True)[:, :k]
    picture = torch.arange(len(best), device=best.device)[:, None]
    return mean_squares(teacher_tokens[picture, best], student_tokens[picture, best])
