"""Which image tokens the text looks at in the first layer: Align-KD's text-to-vision attention (2412.01282)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import in_float


def attention_mse(teacher_attention: Tensor, student_attention: Tensor) -> Tensor:
    """Return the mean square of A_S - A_T, attention [P, T, M, H] from T queries to M image tokens, per picture, [P].

    The mean is over heads, image tokens and the queries that see the picture; the others (image tokens, padding, text in
    front of the picture) are rows of 0 in the teacher's. A picture that no text sees costs 0. Where the models have unlike
    numbers of heads, a trained map from the student's to the teacher's stands in front (Align-KD's 1 x 1 convolution).
    """
    teacher, student = in_float(teacher_attention.detach()), in_float(student_attention)
    asking = (teacher != 0).flatten(2).any(-1)  # [P, T]
    squares = (student - teacher).square().mean((2, 3)) * asking
    return squares.sum(1) / asking.sum(1).clamp(min=1)
