"""Mean squared error of the first layer's attention from text to image tokens: Align-KD's attention term (2412.01282)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32


def attention_mse(teacher_attention: Tensor, student_attention: Tensor) -> Tensor:
    """Return the mean square of A_S - A_T, attention [P, T, M, H] from T queries to M image tokens, per image, [P].

    The mean is over heads, image tokens and the queries that see the image. The other queries (image tokens, padding,
    text in front of the image) are rows of 0 in the teacher's. An image that no text sees costs 0. Where the models have
    different numbers of heads, the student's went through a trained map to the teacher's (Align-KD's 1 x 1 convolution).
    """
    teacher, student = at_least_float32(teacher_attention.detach()), at_least_float32(student_attention)
    sees_image = (teacher != 0).flatten(2).any(-1)  # [P, T]
    squares = (student - teacher).square().mean((2, 3)) * sees_image
    return squares.sum(1) / sees_image.sum(1).clamp(min=1)
