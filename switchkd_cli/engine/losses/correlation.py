"""Similarity of an image's visual tokens to one another: LLaVA-KD's relation distillation (2410.16236)."""

from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.positions import group_by_row
from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32, mask_padding, padding_columns


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
