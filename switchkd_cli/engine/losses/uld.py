"""Universal logit distillation: sorted probabilities of two unlike vocabularies (ULD, 2402.12030)."""

from torch import Tensor
from torch.nn.functional import pad

from switchkd_cli.engine.losses.ops.spans import first_positions
from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32


def uld(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_spans: Tensor,
    student_spans: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Return the distance between both models' sorted probabilities at the beginning of each span, between 0 and 2, [C].

    It is the sum of |sort(p_T) - sort(p_S)|, p = softmax(z / temperature), the shorter one padded with zeros: Wasserstein-1
    where any two tokens lie equally far apart. Logits are [M, V_T] and [N, V_S].

    ULD pairs the first position with the first, the second with the second. Here positions are paired that have read the
    same bytes (our choice).
    """
    teacher, student = (
        (at_least_float32(logits[first_positions(spans)]) / temperature).softmax(-1).sort(-1, descending=True).values
        for logits, spans in ((teacher_logits.detach(), teacher_spans), (student_logits, student_spans))
    )
    missing = teacher.shape[-1] - student.shape[-1]
    return (pad(teacher, (0, max(0, -missing))) - pad(student, (0, max(0, missing)))).abs().sum(-1)
