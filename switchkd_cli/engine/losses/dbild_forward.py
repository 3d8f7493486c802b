"""DBiLD with the forward divergence: what the paper's choice of the reverse one is measured against."""

from functools import partial

from torch import Tensor

from switchkd_cli.engine.losses.ops.knee import TopKnee
from switchkd_cli.engine.losses.ops.leaders import at_knees_of, over_sides
from switchkd_cli.engine.losses.ops.pairwise_kl import teacher_weighted


@at_knees_of("teacher", "student")
def dbild_forward(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 3.0,
    window: int | None = None,
    min_k: int = 3,
    max_k: int | None = None,
) -> Tensor:
    """Return L_t + L_s for each row of logits [N, V], in nats, [N]: as dbild, with KL(p_T || p_S) on both sides.

    With bounds min_k = max_k it is bild.
    """
    divergence = partial(teacher_weighted, temperature=temperature)
    return over_sides(divergence, teacher_logits, student_logits, TopKnee(window, min_k, max_k))
