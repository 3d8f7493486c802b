"""Mean squared error of the visual tokens that the text attends to most: a half of Align-KD's visual term (2412.01282)."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.mse import mse_per_image


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
