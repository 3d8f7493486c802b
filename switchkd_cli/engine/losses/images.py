"""Losses of images: features, visual tokens, and how text attends to them."""

from typing import Annotated

import torch
from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32
from switchkd_cli.ranges import PositiveInt, Share, above


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
    teacher_tokens: Tensor, student_tokens: Tensor, teacher_attention: Tensor, *, k: PositiveInt = 16
) -> Tensor:
    """Return the mean square of P_S(V_S(x)) - P_T(V_T(x)) over the k most attended of M tokens [P, M, D], [P].

    Tokens are ranked by the attention that the teacher's first layer gives them, ``teacher_attention`` [P, T, M, H]
    summed over text queries and heads; of equal ones the first. With M at most k, all tokens count.
    """
    attention = teacher_attention.detach().sum((1, 3))
    top = attention.argsort(dim=1, descending=True, stable=True)[:, :k]
    image = torch.arange(len(top), device=top.device)[:, None]
    return mse_per_image(teacher_tokens[image, top], student_tokens[image, top])


def mse_per_image(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean of (student - teacher)^2 over all axes of [P, ...] except the first, [P]; the teacher is detached."""
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    return difference.square().flatten(1).mean(-1)


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


def attention_cosine(
    teacher_attentions: Tensor,
    student_attentions: Tensor,
    *,
    first: Share = 0.3,
    last: Annotated[Share, above("first")] = 0.7,
) -> Tensor:
    """Return 1 - cos(A_T, A_S) over the image tokens, the mean over layers and the queries that see the image, [P] (CompoDistill).

    A [P, T, M, L] is the attention of T queries to M image tokens in each of L layers, of which those between the shares
    ``first`` and ``last`` of the depth count. Each of the student's is compared with the mean of a group of the teacher's:
    neighbours, in order, of which two groups share one where they can't be divided equally. The other queries are rows of 0 in
    the teacher's.
    """
    teacher, student = at_least_float32(teacher_attentions.detach()), at_least_float32(student_attentions)
    sees_image = (teacher != 0).flatten(2).any(-1)  # [P, T]
    teacher, student = (_between(attention, first, last) for attention in (teacher, student))
    groups = nn.functional.adaptive_avg_pool1d(teacher.flatten(0, 1), student.shape[-1]).view_as(student)
    distances = (1 - nn.functional.cosine_similarity(groups, student, dim=2)).mean(-1) * sees_image
    return distances.sum(1) / sees_image.sum(1).clamp(min=1)


def _between(attention: Tensor, first: float, last: float) -> Tensor:
    """Return the layers of [..., L] between two shares of the depth, at least one."""
    layers = attention.shape[-1]
    start = min(int(first * layers), layers - 1)
    return attention[..., start : max(start + 1, int(last * layers))]
