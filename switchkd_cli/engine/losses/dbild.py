"""Dynamic bi-directional logits difference: DBiLD, the loss of Switch-KD (2604.14629, Algorithm 2)."""

from functools import partial

from torch import Tensor

from switchkd_cli.engine.losses.ops.knee import TopKnee
from switchkd_cli.engine.losses.ops.leaders import at_knees_of, over_sides
from switchkd_cli.engine.losses.ops.pairwise_kl import student_weighted


@at_knees_of("teacher", "student")
def dbild(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 3.0,
    window: int | None = None,
    min_k: int = 3,
    max_k: int | None = None,
) -> Tensor:
    """Return L_t + L_s (Eq. 7) for each row of logits [N, V], in nats, [N].

    L_t is led by the teacher: its top k logits, k at the knee of its own sorted logits (Eqs. 8-9), beside
    the student's logits on the same ids. The differences z_i - z_j of all pairs i < j, in the leader's
    order, become distributions p_T and p_S by a softmax over the pairs (Eqs. 10-12). L_s is led by the
    student in the same way. Each side is the reverse divergence KL(p_S || p_T): the weight is the
    student's, whoever leads (Eq. 13). In L_VSD the student's logits are the switch path's.

    temperature: divides the differences; no squared factor (assumption, as BiLD).
    window: the knee is sought among so many of the leader's highest logits; None: among all (Algorithm 2).
    min_k, max_k: bounds of k. Two ids make one pair, of probability 1, so nothing is learnt below 3.
    """
    divergence = partial(student_weighted, temperature=temperature)
    return over_sides(divergence, teacher_logits, student_logits, TopKnee(window, min_k, max_k))
