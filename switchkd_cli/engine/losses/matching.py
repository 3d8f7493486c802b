"""Visual tokens of two models that are matched one to one, however many each has: EM-KD's terms (sources in docs/methods.md)."""

from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32, kl, mask_padding, padding_columns
from switchkd_cli.ranges import Positive


def matched_kl(
    teacher_logits: Tensor, student_logits: Tensor, teacher_rows: Tensor, rows: Tensor, *, temperature: Positive = 1.0
) -> Tensor:
    """Return KL(p_T || p_S) of each of the student's positions and the teacher's that it is matched with, in nats, [N].

    Within an example, positions are matched so that the L1 distances between their logits, [M, V] and [N, V], add up to
    least: with ``on: image`` these are the visual tokens. ``teacher_rows`` [M] and ``rows`` [N] say which example each
    belongs to. A position that is matched with none costs 0; p = softmax(z / temperature).
    """
    models = teacher_logits.detach(), student_logits
    padding = [of.any(0) for of in map(padding_columns, models) if of is not None]  # either may have more positions
    teacher, student = (mask_padding(z, torch.stack(padding).any(0) if padding else None) for z in models)
    costs = 0 * student[:, 0]  # with a graph, also without an image
    for theirs, ours in _examples(teacher_rows, rows):
        first, second = _matched(teacher[theirs], student[ours])
        log_t, log_s = ((z / temperature).log_softmax(-1) for z in (teacher[theirs[first]], student[ours[second]]))
        costs = costs.index_add(0, ours[second], kl(log_t, log_s))
    return costs


def affinity(
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    teacher_rows: Tensor,
    rows: Tensor,
    teacher_image: Tensor,
    student_image: Tensor,
) -> Tensor:
    """Return the smooth L1 distance of each visual token's cosines with the example's text from its match's, [N].

    Hidden states are [M, D] and [N, D] at all positions (``on: all``), ``teacher_image`` [M] and ``student_image`` [N] bool say
    which of them hold visual tokens. A visual token is matched by its cosines, as ``matched_kl`` does by logits. Other
    positions cost 0, and so does an example whose text has another length for the teacher.
    """
    teacher, student = at_least_float32(teacher_hidden.detach()), at_least_float32(student_hidden)
    costs = 0 * student[:, 0]  # with a graph, also without an image
    for theirs, ours in _examples(teacher_rows, rows):
        a = _cosines(teacher[theirs], teacher_image[theirs])
        b = _cosines(student[ours], student_image[ours])
        if a.shape[1] == b.shape[1] and len(a) and len(b):
            first, second = _matched(a, b)
            distances = nn.functional.smooth_l1_loss(b[second], a[first], reduction="none").mean(-1)
            costs = costs.index_add(0, ours[student_image[ours]][second], distances)
    return costs


def _examples(teacher_rows: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the teacher's and the student's positions of each example."""
    for row in rows.unique():
        yield (teacher_rows == row).nonzero()[:, 0], (rows == row).nonzero()[:, 0]


def _cosines(hidden: Tensor, image: Tensor) -> Tensor:
    """Return the cosines of an example's visual tokens with its text, [visual, text]."""
    states = nn.functional.normalize(hidden, dim=-1)
    return states[image] @ states[~image].mT


def _matched(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of [M, K] and [N, K] are matched, as many of each as the smaller one has. NaN stays in the loss."""
    cost = torch.cdist(teacher.detach(), student.detach(), p=1).cpu()
    first, second = (torch.from_numpy(of).to(teacher.device) for of in linear_sum_assignment(cost.nan_to_num()))
    return first, second
