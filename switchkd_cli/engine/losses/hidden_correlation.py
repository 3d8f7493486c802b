"""Similarity of an image's visual tokens to one another in hidden states: LLaVA-KD's relations (2410.16236)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.group_by_row import group_by_row
from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32
from switchkd_cli.engine.losses.self_correlation import correlation_distance


def hidden_correlation(teacher_hidden: Tensor, student_hidden: Tensor, rows: Tensor) -> Tensor:
    """Return 1 - cos(R_T, R_S) of the example that each of N positions belongs to, [N].

    As ``self_correlation``, with L's hidden states [N, D] in front of its head in place of its logits: the other reading
    of the source. The models' widths may differ, as R = H H^T doesn't depend on the width.
    """
    teacher, student = at_least_float32(teacher_hidden.detach()), at_least_float32(student_hidden)
    return correlation_distance(group_by_row(teacher, rows), group_by_row(student, rows))
