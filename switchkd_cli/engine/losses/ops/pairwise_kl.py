"""Softmax over the differences of all pairs, in time and memory linear in k.

Given u_0 ... u_{k-1}, the pair i < j has the probability p_ij = exp(u_i - u_j) / Z(u); given v, q_ij
likewise. There are k (k - 1) / 2 pairs, but the sums over them that the divergence needs factor into
cumulative sums:

    first_i    = sum_{j>i} p_ij    i is the first of a pair:     proportional to exp(u_i) sum_{j>i} exp(-u_j)
    second_j   = sum_{i<j} p_ij    j is the second of a pair:    proportional to exp(-u_j) sum_{i<j} exp(u_i)
    Z(u)       = sum_j exp(-u_j) sum_{i<j} exp(u_i)
    KL(p || q) = E_p[(u_i - u_j) - (v_i - v_j)] - log Z(u) + log Z(v)
               = <first - second, u - v> - log Z(u) + log Z(v)

This is exact. The knee of a whole vocabulary of 151,936 lies near k = 5,000: ten million pairs a row.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from switchkd_cli.engine.losses.ops.leaders import Led
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR

WIDEST = 300.0  # nats between the highest and the lowest of a row; exp(-2 * WIDEST) is still a normal float64


def difference_kl(of: Tensor, to: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Return KL(p || q) in nats, [N], over the pairs of ``of`` [N, K] (p) and of ``to`` [N, K] (q).

    Row n takes its first k[n] values; fewer than two make no pair, and the loss is 0. The inside is
    float64, as the divergence of two close models is a small difference of large numbers.
    """
    return _DifferenceKL.apply(of, to, k, temperature)


def student_weighted(side: Led, temperature: float) -> Tensor:
    """The reverse divergence KL(p_S || p_T) of a side's pairs, [N]."""
    return difference_kl(side.student, side.teacher, side.k, temperature)


def teacher_weighted(side: Led, temperature: float) -> Tensor:
    """The forward divergence KL(p_T || p_S) of a side's pairs, [N]."""
    return difference_kl(side.teacher, side.student, side.k, temperature)


class _DifferenceKL(torch.autograd.Function):
    """The divergence and its gradient at once: they share their sums, and only the gradient has to be kept."""

    @staticmethod
    def forward(ctx, of: Tensor, to: Tensor, k: Tensor, temperature: float) -> Tensor:
        kept = torch.arange(of.shape[-1], device=of.device) < torch.where(k < 2, 0, k)[:, None]
        # only differences count: both begin at 0
        pair = [
            torch.where(kept, (values - values[:, :1]) / temperature, 0.0)
            for values in (of.double(), to.double())
        ]
        narrow = all(_spread(values) <= WIDEST for values in pair)
        value, *slopes = (_by_sums if narrow else _by_logs)(*pair, kept, ctx.needs_input_grad)
        slopes = [None if slope is None else (slope / temperature).to(of.dtype) for slope in slopes]
        ctx.save_for_backward(*slopes)
        return value.to(of.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if slope is None else grad[:, None] * slope for slope in ctx.saved_tensors), None, None


def _by_sums(u: Tensor, v: Tensor, kept: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """KL of u's pairs from v's, [N], and its slopes along u and v, [N, K], where they are needed."""
    p, q = _Pairs(u, kept), _Pairs(v, kept)
    gap = u - v
    marginal = p.marginal()
    mean = (marginal * gap).sum(-1, keepdim=True)
    # along u_k: sum of p_kj (gap_k - gap_j - mean) over the pairs it leads, less that of p_ik (...) over those it ends
    along_u = p.either() * gap - p.other(gap) - mean * marginal if needs[0] else None
    along_v = q.marginal() - marginal if needs[1] else None
    return mean.squeeze(-1) - p.log_total + q.log_total, along_u, along_v


class _Pairs:
    """The pairs' probabilities p_ij = a_i b_j / Z of kept values [N, K], the others 0, as the sums over i and over j.

    a_i = exp(u_i - max u) and b_j = exp(min u - u_j): each at most 1, and no product of theirs underflows where u
    spreads over WIDEST at most. No sum has a difference in it, so each is exact to the last digits.
    """

    def __init__(self, values: Tensor, kept: Tensor) -> None:
        high, low = values.amax(-1, keepdim=True), values.amin(-1, keepdim=True)
        self.a, self.b = (values - high).exp() * kept, (low - values).exp() * kept
        self.second = self.b * _before(self.a)
        total = self.second.sum(-1, keepdim=True)
        self.total = torch.where(total > 0, total, 1.0)  # a row without pairs
        self.log_total = (self.total.log() + high - low).squeeze(-1)

    @cached_property
    def first(self) -> Tensor:
        return self.a * _after(self.b)

    def marginal(self) -> Tensor:
        """Sum of p over the pairs that k leads, less that over those it ends, [N, K]."""
        return (self.first - self.second) / self.total

    def either(self) -> Tensor:
        """Sum of p over the pairs that hold k, [N, K]."""
        return (self.first + self.second) / self.total

    def other(self, gap: Tensor) -> Tensor:
        """The same, each pair weighted by the gap of its other end."""
        return (self.a * _after(self.b * gap) + self.b * _before(self.a * gap)) / self.total


def _before(values: Tensor) -> Tensor:
    """Sum of those that stand before each."""
    return pad(values.cumsum(-1)[:, :-1], (1, 0))


def _after(values: Tensor) -> Tensor:
    """Sum of those that stand after each."""
    return _before(values.flip(-1)).flip(-1)


def _spread(values: Tensor) -> float:
    """The widest row, from its lowest to its highest value; NaN where one is."""
    return (values.amax(-1) - values.amin(-1)).amax().item() if len(values) else 0.0


def _by_logs(u: Tensor, v: Tensor, kept: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The same for values of any spread, at several times the cost."""
    with torch.enable_grad():
        u, v = (values.detach().requires_grad_(need) for values, need in zip((u, v), needs, strict=False))
        log_first, log_second = _log_first(u, kept), _log_second(u, kept)
        gap = u - v
        first, second = log_first.softmax(-1), log_second.softmax(-1)
        mean_gap = (first * gap[:, :-1]).sum(-1) - (second * gap[:, 1:]).sum(-1)
        value = mean_gap - log_second.logsumexp(-1) + _log_second(v, kept).logsumexp(-1)
        needed = [values for values in (u, v) if values.requires_grad]
        found = iter(torch.autograd.grad(value.sum(), needed) if needed else ())
    return value.detach(), *(next(found) if values.requires_grad else None for values in (u, v))


def _log_first(u: Tensor, kept: Tensor) -> Tensor:
    """Return log(Z first_i) for i = 0 ... K - 2."""
    after = torch.where(kept, -u, FLOOR).flip(-1).logcumsumexp(-1).flip(-1)
    return u[:, :-1] + after[:, 1:]


def _log_second(u: Tensor, kept: Tensor) -> Tensor:
    """Return log(Z second_j) for j = 1 ... K - 1; their sum is Z."""
    before = u.logcumsumexp(-1)
    return torch.where(kept[:, 1:], before[:, :-1] - u[:, 1:], FLOOR)
