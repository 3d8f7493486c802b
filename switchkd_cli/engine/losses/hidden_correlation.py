"""How the visual tokens of a picture resemble one another inside the language model (LLaVA-KD's relations, 2410.16236)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.group_by_row import by_row
from switchkd_cli.engine.losses.ops.vocabulary import in_float
from switchkd_cli.engine.losses.self_correlation import unlike


def hidden_correlation(teacher_hidden: Tensor, student_hidden: Tensor, rows: Tensor) -> Tensor:
    """Return 1 - cos(R_T, R_S) of the row of data that each of N positions belongs to, [N].

    As ``self_correlation``, with L's last hidden states [N, D] in place of its logits: the other reading of the source.
    Their widths need not agree, as R = H H^T has none.
    """
    teacher, student = in_float(teacher_hidden.detach()), in_float(student_hidden)
    return unlike(by_row(teacher, rows), by_row(student, rows))
