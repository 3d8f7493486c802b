"""Where the text looks in the picture, as a divergence: Align-KD's attention term as its code had it first (2412.01282)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import in_float

TINY = 1e-30  # keeps the logarithm of nothing away


def attention_kl(teacher_focus: Tensor, student_focus: Tensor, *, renormalise: bool = True) -> Tensor:
    """Return KL(A_T || A_S) over the image tokens, the mean over the queries that see the picture, in nats, [P].

    A [P, T, M] are the first layer's shares, the mean over its heads, so that numbers of heads need not agree; queries
    that see no picture are rows of 0 in the teacher's, and a picture that no text sees costs 0. The shares of a query
    leave out what it gives to text, so they add up to less than 1; ``renormalise`` divides by their sum: where to in
    the picture, whatever it takes from the text. Without it, as in that code, the term is least where the student looks
    at nothing but the picture, and may be negative. (It takes the mean over image tokens: 1 / M of this.)
    """
    teacher, student = in_float(teacher_focus.detach()), in_float(student_focus)
    asking = (teacher != 0).any(-1)  # [P, T]
    if renormalise:
        teacher, student = (
            shares / shares.sum(-1, keepdim=True).clamp(min=TINY) for shares in (teacher, student)
        )
    further = teacher.clamp(min=TINY).log() - student.clamp(min=TINY).log()
    return ((teacher * further).sum(-1) * asking).sum(1) / asking.sum(1).clamp(min=1)
