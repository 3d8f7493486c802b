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


@torch.no_grad()
def absent_columns(*rows: Tensor) -> Tensor | None:
    """Return a mask [N, V], true where any of the given logits [N, V] is padding; None where the lowest is not.

    None is the usual case, and saves every later pass that would look at the mask.
    """
    if all((in_float(logits.amin(-1)) > FLOOR).all() for logits in rows if logits.numel()):
        return None
    mask, *others = (in_float(logits) <= FLOOR for logits in rows)
    for other in others:
        mask |= other
    return mask


def filled(logits: Tensor, absent: Tensor | None, value: float = FLOOR) -> Tensor:
    """Return the logits [N, V] in float, absent columns at the floor or at another value."""
    logits = in_float(logits)
    return logits if absent is None else logits.masked_fill(absent, value)


def present(logits: Tensor, absent: Tensor | None) -> Tensor:
    """How many columns of each row of logits [N, V] are there, int64 [N]."""
    if absent is None:
        return torch.full((len(logits),), logits.shape[-1], device=logits.device)
    return (~absent).sum(-1)


def broken_rows(logits: Tensor) -> Tensor:
    """Return NaN [N] where a row of logits [N, V] holds NaN or +inf, else 0: for a loss that looks at few columns."""
    return 0 * in_float(logits.detach().amax(-1)).clamp(min=FLOOR)


def comparable(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return both logits [N, V] in float, the teacher's detached, with absent columns at the floor."""
    absent = absent_columns(teacher_logits, student_logits)
    return filled(teacher_logits.detach(), absent), filled(student_logits, absent)
