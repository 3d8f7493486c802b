"""Hidden states in front of the head, the student's in the teacher's width: position against position, within one example."""

import torch
from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.positions import group_by_row
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, at_least_float32, kl
from switchkd_cli.ranges import NotNegative, Positive, PositiveInt

TINY = 1e-6  # of the largest singular value: what is smaller is no direction


def contrastive(
    teacher_mapped: Tensor,
    student_mapped: Tensor,
    rows: Tensor,
    *,
    temperature: Positive = 0.1,
    consistency: NotNegative = 0.5,
) -> Tensor:
    """Return how badly a position's student state tells its own teacher state from the example's others, [N] (DCD, 2407.11802).

    With C_ij = cos(s_i, t_j) / temperature of states [N, D], it is -log softmax_j(C_ij) at j = i, plus ``consistency``
    times KL of the softmax over students, C_ji, from that over teachers, C_ij. ``rows`` [N] says which example each
    position belongs to. The source learns the temperature and a bias, and contrasts the images of a batch.
    """
    teacher, student = at_least_float32(teacher_mapped.detach()), at_least_float32(student_mapped)
    (t, mask), (s, _) = (group_by_row(nn.functional.normalize(z, dim=-1), rows) for z in (teacher, student))
    cosines = (s @ t.mT / temperature).masked_fill(~(mask[:, :, None] & mask[:, None]), FLOOR)
    of_students, of_teachers = cosines.log_softmax(-1), cosines.mT.log_softmax(-1)
    loss = consistency * kl(of_teachers, of_students) - of_students.diagonal(dim1=1, dim2=2)
    return loss[mask]


def pseudo_classes(
    teacher_mapped: Tensor,
    student_mapped: Tensor,
    rows: Tensor,
    *,
    components: PositiveInt = 4,
    temperature: Positive = 1.0,
) -> Tensor:
    """Return KL(q_T || q_S) over both ends of the example's first principal components, in nats, [N] (after LELP, 2409.20449).

    The components are those of the teacher's states [N, D] of the example that a position belongs to (``rows`` [N]);
    q = softmax(+-c / temperature), c how far a state lies along each, in the teacher's standard deviations. Both models are
    centred by the teacher's mean. The source finds components once, in all of the data, apart for each class, and gives the
    student a head for the pseudo-classes.
    """
    teacher, student = at_least_float32(teacher_mapped.detach()), at_least_float32(student_mapped)
    (t, mask), (s, _) = (group_by_row(z, rows) for z in (teacher, student))
    count = mask.sum(1).clamp(min=1)[:, None, None].to(t.dtype)
    mean = t.sum(1, keepdim=True) / count
    t, s = ((z - mean) * mask[..., None] for z in (t, s))
    _, spread, axes = torch.linalg.svd(t.nan_to_num(0, 0, 0), full_matrices=False)  # it refuses what isn't finite
    spread, axes = spread[:, None, :components], axes[:, :components]
    none = (spread <= TINY * spread[..., :1].clamp(min=TINY)).repeat(1, 1, 2)  # an example of few positions has fewer
    deviations = spread.clamp(min=TINY) / count.sqrt()
    ends = (torch.cat([along, -along], -1) for along in (z @ axes.mT / deviations / temperature for z in (t, s)))
    loss = kl(*(each.masked_fill(none, FLOOR).log_softmax(-1) for each in ends))
    return (loss + 0 * t.sum(-1))[mask]  # NaN where the teacher's states are not finite
