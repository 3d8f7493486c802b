"""The first layer's attention from text to image tokens in two models: Align-KD's attention terms (2412.01282).

The mean squared error, and the KL divergence, the first public one.
"""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32

TINY = 1e-30  # keeps the logarithm of 0 finite


def attention_kl(teacher_focus: Tensor, student_focus: Tensor, *, renormalise: bool = True) -> Tensor:
    """Return KL(A_T || A_S) over the image tokens, the mean over the queries that see the image, in nats, [P].

    A [P, T, M] is the first layer's attention, the mean over its heads, so the models may have different numbers of
    heads. A query that sees no image is a row of 0 in the teacher's; an image that no text sees costs 0. A query's
    shares don't include its attention to text, so they add up to less than 1. ``renormalise`` divides by their sum:
    where in the image the query looks, however much it looks at the text. Without it, as in the public code, the term
    is least where the student looks at the image only, and it may be negative. (The public code takes the mean over
    image tokens: 1 / M of this.)
    """
    teacher, student = at_least_float32(teacher_focus.detach()), at_least_float32(student_focus)
    sees_image = (teacher != 0).any(-1)  # [P, T]
    if renormalise:
        teacher, student = (shares / shares.sum(-1, keepdim=True).clamp(min=TINY) for shares in (teacher, student))
    log_ratio = teacher.clamp(min=TINY).log() - student.clamp(min=TINY).log()
    return ((teacher * log_ratio).sum(-1) * sees_image).sum(1) / sees_image.sum(1).clamp(min=1)


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
