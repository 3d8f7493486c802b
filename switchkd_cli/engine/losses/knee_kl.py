"""DBiLD without differences: what the pairs are measured against."""

import torch
from torch import Tensor

from switchkd_cli.engine.losses.ops.knee import TopKnee
from switchkd_cli.engine.losses.ops.leaders import Led, at_knees_of, over_sides
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
    in dbild. No temperature^2 factor.
    """

    def divergence(side: Led) -> Tensor:
        return _top_kl(side.student, side.teacher, side.k, temperature)

    return over_sides(divergence, teacher_logits, student_logits, TopKnee(window, min_k, max_k))


def _top_kl(of: Tensor, to: Tensor, k: Tensor, temperature: float) -> Tensor:
    """KL(p || q) over the first k[n] columns of ``of`` [N, K] (p) and of ``to`` [N, K] (q); inside in float64."""
    left_out = torch.arange(of.shape[-1], device=of.device) >= k[:, None]
    log_p, log_q = (_log_softmax(z.double() / temperature, left_out) for z in (of, to))
    return (log_p.exp() * (log_p - log_q)).sum(-1).to(of.dtype)


def _log_softmax(z: Tensor, left_out: Tensor) -> Tensor:
    return z.masked_fill(left_out, FLOOR).log_softmax(-1)
