"""KL after projecting the student's probabilities onto the teacher's vocabulary: X-Token's P-KL (2605.21699)."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl
from switchkd_cli.engine.losses.ops.spans import first_positions
from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32


def projected_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_spans: Tensor,
    student_spans: Tensor,
    first_pieces: Tensor,
    *,
    temperature: float = 1.0,
    k: int = 100,
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
