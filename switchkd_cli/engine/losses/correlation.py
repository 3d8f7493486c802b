"""Similarity of an example's positions to one another, for one the visual tokens: it doesn't depend on a model's width.

LLaVA-KD's relation distillation (2410.16236), centred kernel alignment (CKA, 1905.00414, as GRACE uses it), and a graph of
tokens (after TRG, 2306.12442).
"""

import torch
from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.positions import group_by_row, pooled
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, at_least_float32, kl, mask_padding, padding_columns
from switchkd_cli.ranges import Positive


def self_correlation(teacher_logits: Tensor, student_logits: Tensor, rows: Tensor) -> Tensor:
    """Return 1 - cos(R_T, R_S) of the example that each row of logits [N, V] belongs to, [N].

    R = Z Z^T [L, L] are the inner products of the logits Z of an example's L positions; ``rows`` [N] int64 says which
    example each position belongs to. With ``on: image`` the positions are the visual tokens. That Z are logits is one
    reading of the source, hidden states (``hidden_correlation``) the other. Padding columns count as 0; an example whose
    logits are all 0 costs 1.
    """
    padding = padding_columns(teacher_logits, student_logits)
    teacher, student = (
        group_by_row(mask_padding(z, padding, 0.0), rows) for z in (teacher_logits.detach(), student_logits)
    )
    return correlation_distance(teacher, student)


def correlation_distance(teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor]) -> Tensor:
    """Return 1 - cos between the inner products of each example's positions, [N]; both as from ``group_by_row``."""
    ours, theirs = ((z @ z.transpose(1, 2)).flatten(1) for z, _ in (teacher, student))
    distance = 1 - nn.functional.cosine_similarity(ours, theirs, dim=-1)
    mask = student[1]
    return distance[:, None].expand_as(mask)[mask]


def hidden_correlation(teacher_hidden: Tensor, student_hidden: Tensor, rows: Tensor) -> Tensor:
    """Return 1 - cos(R_T, R_S) of the example that each of N positions belongs to, [N].

    As ``self_correlation``, with L's hidden states [N, D] in front of its head in place of its logits: the other reading
    of the source. The models' widths may differ, as R = H H^T doesn't depend on the width.
    """
    teacher, student = at_least_float32(teacher_hidden.detach()), at_least_float32(student_hidden)
    return correlation_distance(group_by_row(teacher, rows), group_by_row(student, rows))


def cka(teacher_hidden: Tensor, student_hidden: Tensor, teacher_rows: Tensor, rows: Tensor) -> Tensor:
    """Return 1 - CKA of both models' hidden states [N, D] of the example that each of N positions belongs to, [N].

    With K = V V^T of the states V, each of length 1 and the example's mean taken off, it is
    1 - HSIC(K_T, K_S) / sqrt(HSIC(K_T, K_T) HSIC(K_S, K_S)). Where the teacher has other counts of positions
    (``teacher_rows`` [M]), its states are averaged to the student's: neighbours in their order, not in the picture.
    """
    theirs = pooled(at_least_float32(teacher_hidden.detach()), teacher_rows, rows)
    return correlation_distance(_centred(theirs, rows), _centred(at_least_float32(student_hidden), rows))


def _centred(hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return states of length 1 less their example's mean, as from ``group_by_row``."""
    states, mask = group_by_row(nn.functional.normalize(hidden, dim=-1), rows)
    mean = states.sum(1, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]
    return (states - mean) * mask[..., None], mask


def token_graph(teacher_hidden: Tensor, student_hidden: Tensor, rows: Tensor, *, temperature: Positive = 0.1) -> Tensor:
    """Return KL(g_T || g_S) of each position's similarities to the other positions of its example, in nats, [N].

    g = softmax(cos(h_i, h_j) / temperature) over j other than i, of hidden states [N, D]: to which tokens a model holds a
    token similar. A position that is alone in its example costs 0.
    """
    (log_t, mask), (log_s, _) = (_neighbours(h, rows, temperature) for h in (teacher_hidden.detach(), student_hidden))
    return kl(log_t, log_s)[mask]


def _neighbours(hidden: Tensor, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log g [R, L, L], and which of the positions exist."""
    states, mask = group_by_row(nn.functional.normalize(at_least_float32(hidden), dim=-1), rows)
    left_out = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device) | ~mask[:, None]
    similarity = (states @ states.mT / temperature).masked_fill(left_out, FLOOR)
    return similarity.log_softmax(-1), mask
