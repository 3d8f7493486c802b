"""Padding columns of the vocabulary, which no comparison of two rows of logits may use.

Vocabularies are padded to round widths; padding is written as -inf or as the dtype's lowest number. Such a column says
nothing about a model, yet a single one moves a knee by thousands of ranks. A column that is padding in either model is
therefore left out in both. NaN and +inf are not padding: they stay, and the loss is NaN.
"""

from math import log

import torch
from torch import Tensor

FLOOR = -1e30
"""A logit at or below it is padding. It stands for -inf where that would be subtracted or differentiated."""


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or unchanged if they are float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@torch.no_grad()
def padding_columns(*models: Tensor) -> Tensor | None:
    """Return a mask [N, V] of the columns that are padding in any of the logits [N, V]; None if none is.

    None is the usual case, and saves every later pass over the mask.
    """
    if all((at_least_float32(logits.amin(-1)) > FLOOR).all() for logits in models if logits.numel()):
        return None
    mask, *others = (at_least_float32(logits) <= FLOOR for logits in models)
    for other in others:
        mask |= other
    return mask


def mask_padding(logits: Tensor, padding: Tensor | None, value: float = FLOOR) -> Tensor:
    """Return the logits [N, V] in float32 at least, with padding columns at the floor or at another value."""
    logits = at_least_float32(logits)
    return logits if padding is None else logits.masked_fill(padding, value)


def count_columns(logits: Tensor, padding: Tensor | None) -> Tensor:
    """Return how many columns of each row of logits [N, V] are not padding, int64 [N]."""
    if padding is None:
        return torch.full((len(logits),), logits.shape[-1], device=logits.device)
    return (~padding).sum(-1)


def nan_where_broken(logits: Tensor) -> Tensor:
    """Return NaN where a row of logits [N, V] holds NaN or +inf, else 0, [N]: for a loss that reads few of the columns."""
    return 0 * at_least_float32(logits.detach().amax(-1)).clamp(min=FLOOR)


def without_padding(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return both logits [N, V] in float32 at least, the teacher's detached, with padding columns at the floor."""
    padding = padding_columns(teacher_logits, student_logits)
    return mask_padding(teacher_logits.detach(), padding), mask_padding(student_logits, padding)


def log_probabilities(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log softmax(z / temperature) of both logits [N, V], without padding columns, the teacher's detached."""
    teacher, student = without_padding(teacher_logits, student_logits)
    return (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis, in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mix(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Return log(share p + (1 - share) q), for a share between 0 and 1."""
    return torch.logaddexp(log_p + log(share), log_q + log(1 - share))
