"""DBiLD on logits instead of differences of logits: the control of DBiLD's pairs."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl
from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.losses.ops.leaders import LeaderTopK, at_knees_of, sum_over_leaders
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR


@at_knees_of("teacher", "student")
def knee_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 3.0,
    window: int | None = None,
    min_k: int = 3,
    max_k: int | None = None,
) -> Tensor:
    """Return the teacher-led plus the student-led KL(p_S || p_T) for each row of logits [N, V], in nats, [N].

    p is the softmax of a model's logits / temperature over the leader's top k ids alone, k at the leader's knee as
    in dbild. There is no temperature^2 factor.
    """

    def divergence(top: LeaderTopK) -> Tensor:
        beyond_k = torch.arange(top.student.shape[-1], device=top.k.device) >= top.k[:, None]
        log_p, log_q = (
            (logits.double() / temperature).masked_fill(beyond_k, FLOOR).log_softmax(-1)
            for logits in (top.student, top.teacher)
        )
        return kl(log_p, log_q).to(top.student.dtype)

    return sum_over_leaders(divergence, teacher_logits, student_logits, TopKAtKnee(window, min_k, max_k))
