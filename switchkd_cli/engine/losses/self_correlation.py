"""How the visual tokens of a picture resemble one another: LLaVA-KD's relation distillation (2410.16236)."""

from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.group_by_row import by_row
from switchkd_cli.engine.losses.ops.vocabulary import absent_columns, filled


def self_correlation(teacher_logits: Tensor, student_logits: Tensor, rows: Tensor) -> Tensor:
    """Return 1 - cos(R_T, R_S) of the row of data that each row of logits [N, V] belongs to, [N].

    R = Z Z^T [L, L] holds the inner products of a row's L positions, Z their logits; ``rows`` [N] int64 says whose each
    is. With ``on: image`` these are the visual tokens. That Z are logits is one reading of the source, hidden states
    (``hidden_correlation``) the other. Padding columns count as 0; a row of zeros costs 1.
    """
    absent = absent_columns(teacher_logits, student_logits)
    teacher, student = (
        by_row(filled(z, absent, 0.0), rows) for z in (teacher_logits.detach(), student_logits)
    )
    return unlike(teacher, student)


def unlike(teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor]) -> Tensor:
    """1 - cos between the inner products of the positions of each row, [N]; both as ``by_row`` returns them."""
    correlations = [(z @ z.transpose(1, 2)).flatten(1) for z, _ in (teacher, student)]
    distance = 1 - nn.functional.cosine_similarity(*correlations, dim=-1)
    return distance[:, None].expand_as(student[1])[student[1]]
