"""Scores of positions, and the weights that a term's focus makes of them.

A score is a function of logits [N, V] of paths, which its arguments name, and returns [N]: the higher, the more the position
should count. `weights` turns scores into weights that sum to the number of positions.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from switchkd_cli.engine.losses.divergences import forward_kl
from switchkd_cli.engine.losses.ops.vocabulary import count_columns, log_probabilities, mask_padding, padding_columns

DECIMALS = 6
"""Of scores when they are compared: what differs by less, as rounding makes it do, counts as equal."""
BLOCK = 2**21
"""Logits of a path that are scored together, 8 MiB in float32: half the time of a chunk's at once on a processor."""
ROUNDING = 1e-9  # of a share of a number of positions


def weights(
    scores: Tensor, rows: Tensor, *, share: float | None, mass: float = 0.5, of_examples: bool = False
) -> Tensor:
    """Return a weight for each of N positions, [N] float32, from scores [N] and the example of each, `rows` [N].

    With a `share`, the ceil(share n) highest of n scores get `mass` of the weight, each at least 1, and the others get the
    rest; equal scores get equal weights. Without one, weights are proportional to max(score, 0), and 0 where all of these are.
    They sum to n over the positions of each example; `of_examples`: over all positions, where examples are ranked by
    their mean scores and all positions of one have the same weight. A score that is not finite is a weight of NaN.
    """
    if not len(scores):
        return scores.float()
    _, own = rows.unique(return_inverse=True)
    member, broken = one_hot(own).double(), ~scores.isfinite()  # 0 of another example's NaN would be NaN
    unit, group = scores.double().masked_fill(broken, 0), own
    number = torch.ones_like(unit)
    if of_examples:  # what is weighted is an example, of a number of positions
        number = member.sum(0)
        unit, group = member.T @ unit / number, torch.zeros_like(number, dtype=torch.long)
        member = torch.ones_like(number)[:, None]

    def total(values: Tensor) -> Tensor:
        """Return, at each unit, the sum over its group. A product of matrices adds up in one order, on a GPU too."""
        return member @ (member.T @ values)

    positions = total(number)
    if share is None:
        gates = unit.clamp(min=0)
        of_group = total(number * gates)
        found = torch.where(of_group == 0, 0, gates * positions / of_group)
    else:
        rank, tie = _rank(unit.round(decimals=DECIMALS), group)
        first = number * (rank < (share * total(torch.ones_like(unit)) - ROUNDING).ceil())
        chosen = total(first)
        high = (mass * positions / chosen).clamp(min=1)
        low = (positions - chosen * high) / (positions - chosen).clamp(min=1)
        of_first, of_tie = (torch.zeros_like(unit).index_add_(0, tie, of)[tie] for of in (first, number))
        found = low + of_first / of_tie * (high - low)
    return (found[own] if of_examples else found).float().masked_fill(broken, torch.nan)


def _rank(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rank of each score in its group, from the highest, and a number that it shares with its equals there."""
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, then by score
    sorted_group, places = group[order], torch.arange(len(order), device=order.device)
    changes = torch.stack([sorted_group.double(), scores[order]]).diff(dim=1).ne(0).any(0)
    ties = torch.cat([changes.new_zeros(1), changes]).cumsum(0)
    rank, tie = (torch.empty_like(order).scatter_(0, order, of) for of in (places, ties))
    return rank - torch.searchsorted(sorted_group, group), tie


def switch_gap(teacher_logits: Tensor, switch_logits: Tensor) -> Tensor:
    """Return KL(teacher || switch) in nats, [N]: what the student's vision tower makes the teacher's reader say otherwise."""
    return forward_kl(teacher_logits, switch_logits)


def student_gap(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return KL(teacher || student) in nats, [N]."""
    return forward_kl(teacher_logits, student_logits)


def visual_dependence(teacher_logits: Tensor, blind_logits: Tensor) -> Tensor:
    """Return KL(teacher || teacher without the image) in nats, [N]."""
    return forward_kl(teacher_logits, blind_logits)


def teacher_entropy(teacher_logits: Tensor) -> Tensor:
    """Return the entropy of the teacher's distribution in nats, [N] (MMANet's uncertainty, 2304.08028)."""
    log_p = mask_padding(teacher_logits, padding_columns(teacher_logits)).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def teacher_confidence(teacher_logits: Tensor) -> Tensor:
    """Return exp(-H / log V), H the teacher's entropy over V columns, [N] in [1/e, 1] (GRACE's gate, 2601.22709)."""
    columns = count_columns(teacher_logits, padding_columns(teacher_logits))
    return (-teacher_entropy(teacher_logits) / columns.clamp(min=2).log()).exp()


def teacher_right(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the teacher's most likely token is the target, else 0, [N]."""
    return (teacher_logits.argmax(-1) == targets).float()


def teacher_ahead(teacher_logits: Tensor, student_logits: Tensor, targets: Tensor) -> Tensor:
    """Return how far the teacher is ahead on the way to the target, in [0, 1], [N].

    d_S / (d_S + d_T) · ‖p_S - p_T‖ / √2 with d = 1 - p(target): of the triangle between teacher, student and truth. A closed
    form of ours for what TGeo-KD (2312.15112) learns by a network.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, 1.0)
    ids = targets.clamp(min=0)[:, None]
    d_t, d_s = (1 - log_p.gather(1, ids)[:, 0].exp() for log_p in (log_t, log_s))
    apart = (log_t.exp() - log_s.exp()).norm(dim=-1) / math.sqrt(2)
    return d_s / (d_s + d_t).clamp(min=1e-12) * apart
