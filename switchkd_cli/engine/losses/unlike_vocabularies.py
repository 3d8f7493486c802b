"""Losses of two models with unlike tokenizers, at spans of bytes that both models' tokens end together.

Universal logit distillation: sorted probabilities of both vocabularies (ULD, 2402.12030). KL after projecting the student's
probabilities onto the teacher's vocabulary (X-Token's P-KL, 2605.21699). Approximate likelihood matching (ALM, 2503.20083).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.losses.ops.positions import first_positions, sum_over_spans
from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32, kl
from switchkd_cli.ranges import Positive, PositiveInt


def uld(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_spans: Tensor,
    student_spans: Tensor,
    *,
    temperature: Positive = 1.0,
) -> Tensor:
    """Return the distance between both models' sorted probabilities at the beginning of each span, between 0 and 2, [C].

    It is the sum of |sort(p_T) - sort(p_S)|, p = softmax(z / temperature), the shorter one padded with zeros: Wasserstein-1
    where any two tokens lie equally far apart. Logits are [M, V_T] and [N, V_S].

    ULD pairs the first position with the first, the second with the second. Here positions are paired that have read the
    same bytes (our choice).
    """
    teacher, student = (
        (at_least_float32(logits[first_positions(spans)]) / temperature).softmax(-1).sort(-1, descending=True).values
        for logits, spans in ((teacher_logits.detach(), teacher_spans), (student_logits, student_spans))
    )
    missing = teacher.shape[-1] - student.shape[-1]
    return (pad(teacher, (0, max(0, -missing))) - pad(student, (0, max(0, missing)))).abs().sum(-1)


def projected_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_spans: Tensor,
    student_spans: Tensor,
    first_pieces: Tensor,
    *,
    temperature: Positive = 1.0,
    k: PositiveInt = 100,
) -> Tensor:
    """Return KL(p_T || p_S W) on the teacher's k likeliest tokens and all others as one, at the beginning of each span, [C].

    The k are among those that W reaches. W maps each of the student's tokens to one of the teacher's: that of equal bytes, else the one with which the teacher
    begins its text (`first_pieces` [V_S]; -1: none, its probability counts as another token's). p = softmax(z / temperature),
    of logits [M, V_T] and [N, V_S].

    The paper's W gives weights to all pieces of a token, which we don't know. Where a span begins, only the first piece can
    come next, so that it has all the weight here (our choice); so are k and that the rest counts as one.
    """
    teacher = (at_least_float32(teacher_logits.detach()[first_positions(teacher_spans)]) / temperature).softmax(-1)
    student = (at_least_float32(student_logits[first_positions(student_spans)]) / temperature).softmax(-1)
    known = (first_pieces >= 0).nonzero()[:, 0]
    projected = torch.zeros_like(teacher).index_add(1, first_pieces[known], student[:, known])
    reached = torch.zeros_like(teacher[:1]).index_fill(1, first_pieces[known], 1.0)
    p, ids = (teacher * reached).topk(min(k, teacher.shape[-1]), -1)
    both = (torch.cat([of, 1 - of.sum(-1, keepdim=True)], -1) for of in (p, projected.gather(-1, ids)))
    p, q = (of.clamp(min=torch.finfo(of.dtype).eps).log() for of in both)
    return kl(p, q)


LEAST = 1e-7
"""The least -log(p) / temperature: beyond it 1 - p is lost in float32, and so is its logarithm."""


def alm(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_targets: Tensor,
    targets: Tensor,
    teacher_spans: Tensor,
    student_spans: Tensor,
    *,
    temperature: Positive = 100.0,
    divergence: Literal["forward", "reverse"] = "forward",
) -> Tensor:
    """Return the divergence of two probabilities of each span's text, of it against all other text, in nats, [C].

    A span's log-probability a is the sum of those of its tokens. With p = exp(a / temperature) the divergence is KL between
    (p_T, 1 - p_T) and (p_S, 1 - p_S); its gradient is that of the binary cross-entropy. Both logits have own vocabularies:
    [M, V_T] and [N, V_S], with the next tokens [M] and [N] and their spans.

    Left out of the paper's method: the choice of spans by how little their ends tell (outcome chunk debiasing). That KL is
    its divergence and 100 its temperature is from notes about it, not from its code.
    """
    teacher, student = (
        (sum_over_spans(-cross_entropy(ids, logits), spans) / temperature).clamp(max=-LEAST)
        for ids, logits, spans in (
            (teacher_targets, teacher_logits.detach(), teacher_spans),
            (targets, student_logits, student_spans),
        )
    )
    p, q = (torch.stack([log_p, (-torch.expm1(log_p)).log()], -1) for log_p in (teacher, student))
    return kl(p, q) if divergence == "forward" else kl(q, p)
