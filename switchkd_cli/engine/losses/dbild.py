"""Dynamic bi-directional logits difference: DBiLD, the loss of Switch-KD (2604.14629, Algorithm 2).

BiLD (2406.13555), which DBiLD makes dynamic, and the control of DBiLD's pairs: the same on logits instead of their differences.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.losses.ops.leaders import at_knees_of, sum_over_leaders
from switchkd_cli.engine.losses.ops.pairwise_kl import pairwise_kl
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, kl, nan_where_broken
from switchkd_cli.ranges import Positive, PositiveInt, above


@at_knees_of("teacher", "student")
def dbild(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: Positive = 3.0,
    window: PositiveInt | None = None,
    min_k: PositiveInt = 3,
    max_k: Annotated[int, above("min_k", or_equal=True)] | None = None,
    leaders: Literal["both", "teacher", "student"] = "both",
    divergence: Literal["reverse", "forward"] = "reverse",
) -> Tensor:
    """Return L_t + L_s (Eq. 7) for each row of logits [N, V], in nats, [N].

    L_t (Eq. 14) is led by the teacher: it compares both models on the teacher's top k ids, k at the knee of the
    teacher's sorted logits (Eqs. 8-9). The differences z_i - z_j of all pairs i < j, in the leader's order, become the
    distributions p_T and p_S by a softmax over the pairs (Eqs. 10-12). L_s (Eq. 15) is led by the student in the same
    way. Both are the reverse divergence KL(p_S || p_T): the student's probabilities are the weights, whichever leads
    (Eq. 13). In L_VSD the student's logits are those of the switch path.

    temperature: divides the differences; there is no squared factor (assumption, as in BiLD).
    window: search the knee among this many of the leader's highest logits; None: among all (Algorithm 2).
    min_k, max_k: bounds of k. Two ids make one pair, of probability 1, so nothing is learnt with k below 3.
    leaders: "teacher" is L_t alone, "student" L_s alone: each ignores what only the other model ranks high.
    divergence: "forward" is KL(p_T || p_S); with min_k = max_k it is BiLD.
    """

    def compare(teacher: Tensor, student: Tensor, k: Tensor) -> Tensor:
        of, to = (student, teacher) if divergence == "reverse" else (teacher, student)
        return pairwise_kl(of, to, k, temperature)

    select = TopKAtKnee(window, min_k, max_k)
    if leaders == "both":
        return sum_over_leaders(compare, teacher_logits, student_logits, select)
    led = sum_over_leaders(compare, teacher_logits, student_logits, select, leaders=(leaders,))
    return led + nan_where_broken(student_logits if leaders == "teacher" else teacher_logits)


dbild_forward = partial(dbild, divergence="forward")
dbild_teacher_led = partial(dbild, leaders="teacher")
dbild_student_led = partial(dbild, leaders="student")


def bild(teacher_logits: Tensor, student_logits: Tensor, *, temperature: Positive = 3.0, k: PositiveInt = 8) -> Tensor:
    """Return the teacher-led plus the student-led loss for each row of logits [N, V], in nats, [N].

    As DBiLD, with the same k for every row and both leaders, and with the forward divergence KL(p_T || p_S): the
    teacher's probabilities are the weights, whichever model leads. The temperature divides the differences; there is no squared
    factor.
    """
    bounds = {"window": k, "min_k": k, "max_k": k}
    return dbild(teacher_logits, student_logits, temperature=temperature, divergence="forward", **bounds)


@at_knees_of("teacher", "student")
def knee_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: Positive = 3.0,
    window: PositiveInt | None = None,
    min_k: PositiveInt = 3,
    max_k: Annotated[int, above("min_k", or_equal=True)] | None = None,
) -> Tensor:
    """Return the teacher-led plus the student-led KL(p_S || p_T) for each row of logits [N, V], in nats, [N].

    p is the softmax of a model's logits / temperature over the leader's top k ids alone, k at the leader's knee as
    in dbild. There is no temperature^2 factor.
    """

    def divergence(teacher: Tensor, student: Tensor, k: Tensor) -> Tensor:
        beyond_k = torch.arange(student.shape[-1], device=k.device) >= k[:, None]
        log_p, log_q = (
            (logits.double() / temperature).masked_fill(beyond_k, FLOOR).log_softmax(-1)
            for logits in (student, teacher)
        )
        return kl(log_p, log_q).to(student.dtype)

    return sum_over_leaders(divergence, teacher_logits, student_logits, TopKAtKnee(window, min_k, max_k))
