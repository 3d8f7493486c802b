"""DBiLD's teacher-led side alone (2604.14629, Algorithm 2): what both directions are measured against."""

from functools import partial

from torch import Tensor

from switchkd_cli.engine.losses.ops.knee import TopKnee
from switchkd_cli.engine.losses.ops.leaders import at_knees_of, over_sides
from switchkd_cli.engine.losses.ops.pairwise_kl import student_weighted
from switchkd_cli.engine.losses.ops.vocabulary import broken_rows


@at_knees_of("teacher")
def dbild_teacher_led(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 3.0,
    window: int | None = None,
    min_k: int = 3,
    max_k: int | None = None,
) -> Tensor:
    """Return L_t (Eq. 14) for each row of logits [N, V], in nats, [N].

    The teacher's top ids, k at the teacher's knee, are the only ones looked at: where the student puts mass outside
    them is not seen. Otherwise as dbild, whose value is this side and the student-led one, summed.
    """
    divergence = partial(student_weighted, temperature=temperature)
    side = over_sides(
        divergence, teacher_logits, student_logits, TopKnee(window, min_k, max_k), leaders=("teacher",)
    )
    return side + broken_rows(student_logits)
