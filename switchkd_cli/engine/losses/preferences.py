"""Losses that tell a student which answers a teacher prefers."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.losses.ops.vocabulary import mask_padding, padding_columns
from switchkd_cli.ranges import Positive


def preference(
    teacher_logits: Tensor,
    student_logits: Tensor,
    targets: Tensor,
    rows: Tensor,
    signs: Tensor,
    *,
    beta: Positive = 0.1,
) -> Tensor:
    """Return -log sigmoid(beta (margin of the preferred answer - that of the rejected one)) of each pair, in nats.

    An answer's margin is log pi_S(y) - log pi_T(y), summed over its tokens (LLaVA-MoD, 2408.15881; DPO with the teacher as
    the reference). Logits are [N, V]; ``rows`` [N] are the pair that each position belongs to, ``signs`` [N] 1 in its
    preferred and -1 in its rejected answer. A pair of equal answers gives log 2.
    """
    margins = cross_entropy(targets, teacher_logits.detach()) - cross_entropy(targets, student_logits)
    pairs, pair = rows.unique(return_inverse=True)
    return -logsigmoid(beta * margins.new_zeros(len(pairs)).index_add(0, pair, signs * margins))


def advantage(teacher_logits: Tensor, reference_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return -sum_v p_S(v) (log p_T(v) - log p_ref(v)) for each row of logits [N, V], [N] (ADPA, 2502.17927).

    The teacher was tuned on preferences, the reference is the same teacher before: their difference is the advantage that
    each token has.
    """
    models = teacher_logits.detach(), reference_logits.detach(), student_logits
    padding = padding_columns(*models)
    teacher, reference, student = (mask_padding(logits, padding).log_softmax(-1) for logits in models)
    return -(student.exp() * (teacher - reference)).sum(-1)
