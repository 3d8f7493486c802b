"""KL divergence from a target that moves from the student to the teacher during a stage (TAID, 2501.16937)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.kl import kl
from switchkd_cli.engine.losses.ops.vocabulary import without_padding


def taid(
    teacher_logits: Tensor,
    student_logits: Tensor,
    progress: float,
    *,
    temperature: float = 1.0,
    start: float = 0.4,
    end: float = 1.0,
) -> Tensor:
    """Return KL(p_t || p_S) for each row of logits [N, V], in nats, [N].

    p_t = softmax((1 - t) z_S + t z_T) with z_S detached, logits divided by the temperature; t grows linearly from
    ``start`` to ``end`` with ``progress``, the share of the stage's steps that were taken (0 to 1). This line is the
    source's lower bound of t. The source's adaptive step, which follows the loss from step to step, is left out: a term
    keeps no state. Raises ValueError unless 0 <= start <= end <= 1.
    """
    if not 0 <= start <= end <= 1:
        raise ValueError(f"start and end must be 0 <= start <= end <= 1, got {start} and {end}")
    teacher, student = without_padding(teacher_logits, student_logits)
    t = start + (end - start) * progress
    between = t * teacher + (1 - t) * student.detach()
    return kl((between / temperature).log_softmax(-1), (student / temperature).log_softmax(-1))
