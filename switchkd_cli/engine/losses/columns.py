"""Which columns of the vocabulary two rows of logits can be compared on.

Vocabularies are padded to round widths, and padding is written as -inf or as a dtype's minimum. Such a
column says nothing about a model, yet one alone moves a knee by thousands of ranks. A column that is
padding in either model is therefore absent in both. NaN and +inf are not padding: they stay, and the loss
is NaN.
"""

import torch
from torch import Tensor

# At or below it a logit is padding. It stands in for -inf where that would be subtracted or differentiated.
FLOOR = -1e30


def in_float(logits: Tensor) -> Tensor:
    """Return the logits in float32, or unchanged where they are float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def absent_columns(*rows: Tensor) -> Tensor:
    """Return a mask [N, V], true where any of the given logits [N, V] is padding."""
    return torch.stack([in_float(logits) <= FLOOR for logits in rows]).any(0)


def broken_rows(logits: Tensor) -> Tensor:
    """Return NaN [N] where a row of logits [N, V] holds NaN or +inf, else 0: for a loss that looks at few columns."""
    return 0 * in_float(logits.detach().amax(-1)).clamp(min=FLOOR)


def comparable(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return both logits [N, V] in float, the teacher's detached, with absent columns at the floor."""
    absent = absent_columns(teacher_logits, student_logits)
    teacher, student = in_float(teacher_logits.detach()), in_float(student_logits)
    return teacher.masked_fill(absent, FLOOR), student.masked_fill(absent, FLOOR)
