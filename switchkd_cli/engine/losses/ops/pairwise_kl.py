"""KL divergence between softmaxes over the differences of all pairs of logits, in time and memory linear in k.

With u_0 ... u_{k-1}, the pair i < j has the probability p_ij = exp(u_i - u_j) / Z(u); with v, q_ij likewise. There are
k (k - 1) / 2 pairs, but the sums over them that the divergence needs factor into cumulative sums:

    first_i    = sum_{j>i} p_ij    i is the first of a pair:     proportional to exp(u_i) sum_{j>i} exp(-u_j)
    second_j   = sum_{i<j} p_ij    j is the second of a pair:    proportional to exp(-u_j) sum_{i<j} exp(u_i)
    Z(u)       = sum_j exp(-u_j) sum_{i<j} exp(u_i)
    KL(p || q) = E_p[(u_i - u_j) - (v_i - v_j)] - log Z(u) + log Z(v)
               = <first - second, u - v> - log Z(u) + log Z(v)

This is exact. The knee of a vocabulary of 151,936 lies near k = 5,000: ten million pairs a row.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from switchkd_cli.engine.losses.ops.vocabulary import FLOOR

MAX_SPREAD = 300.0  # nats between the highest and the lowest of a row; exp(-2 * MAX_SPREAD) is still a normal float64


def pairwise_kl(of: Tensor, to: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Return KL(p || q) in nats, [N], over the pairs of ``of`` [N, K] (p) and of ``to`` [N, K] (q).

    Row n uses its first k[n] values; fewer than two make no pair, and the loss is 0. It is computed in float64, as the
    divergence of two similar models is a small difference of large numbers.
    """
    return _PairwiseKL.apply(of, to, k, temperature)


class _PairwiseKL(torch.autograd.Function):
    """The divergence and its gradient in one pass: they share their sums, and only the gradient has to be kept."""

    @staticmethod
    def forward(ctx: Any, of: Tensor, to: Tensor, k: Tensor, temperature: float) -> Tensor:
        in_top_k = torch.arange(of.shape[-1], device=of.device) < torch.where(k < 2, 0, k)[:, None]
        # only differences count: both begin at 0
        u, v = (torch.where(in_top_k, (z - z[:, :1]) / temperature, 0.0) for z in (of.double(), to.double()))
        compute = _by_sums if all(_spread(values) <= MAX_SPREAD for values in (u, v)) else _by_log_sums
        value, *gradients = compute(u, v, in_top_k, ctx.needs_input_grad)
        gradients = [None if g is None else (g / temperature).to(of.dtype) for g in gradients]
        ctx.save_for_backward(*gradients)
        return value.to(of.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if g is None else grad[:, None] * g for g in ctx.saved_tensors), None, None


Result = tuple[Tensor, Tensor | None, Tensor | None]


def _by_sums(u: Tensor, v: Tensor, in_top_k: Tensor, needs: Sequence[bool]) -> Result:
    """Return KL of u's pairs from v's, [N], and its gradients on u and v, [N, K], where they are needed."""
    p, q = _Pairs(u, in_top_k), _Pairs(v, in_top_k)
    gap = u - v
    first_minus_second = p.first_minus_second()
    mean = (first_minus_second * gap).sum(-1, keepdim=True)
    # on u_k: sum of p_kj (gap_k - gap_j - mean) over pairs with k first, minus that of p_ik (...) with k second
    on_u = p.first_plus_second() * gap - p.gap_of_other(gap) - mean * first_minus_second if needs[0] else None
    on_v = q.first_minus_second() - first_minus_second if needs[1] else None
    return mean.squeeze(-1) - p.log_total + q.log_total, on_u, on_v


class _Pairs:
    """The pairs' probabilities p_ij = a_i b_j / Z of the top k of [N, K], as their sums over i and over j; the others are 0.

    a_i = exp(u_i - max u) and b_j = exp(min u - u_j): each is at most 1, and no product of them underflows if u spreads
    over at most MAX_SPREAD. No sum contains a difference, so each is exact to the last digits.
    """

    def __init__(self, values: Tensor, in_top_k: Tensor) -> None:
        high, low = values.amax(-1, keepdim=True), values.amin(-1, keepdim=True)
        self.a, self.b = (values - high).exp() * in_top_k, (low - values).exp() * in_top_k
        self.second = self.b * _sum_before(self.a)
        total = self.second.sum(-1, keepdim=True)
        self.total = torch.where(total > 0, total, 1.0)  # a row without pairs
        self.log_total = (self.total.log() + high - low).squeeze(-1)

    @cached_property
    def first(self) -> Tensor:
        return self.a * _sum_after(self.b)

    def first_minus_second(self) -> Tensor:
        """Return the sum of p over the pairs with k first, minus that with k second, [N, K]."""
        return (self.first - self.second) / self.total

    def first_plus_second(self) -> Tensor:
        """Return the sum of p over all pairs with k, [N, K]."""
        return (self.first + self.second) / self.total

    def gap_of_other(self, gap: Tensor) -> Tensor:
        """Return the sum over all pairs with k of p times the gap of the pair's other member, [N, K]."""
        return (self.a * _sum_after(self.b * gap) + self.b * _sum_before(self.a * gap)) / self.total


def _sum_before(values: Tensor) -> Tensor:
    """Return, at each place, the sum of the values before it."""
    return pad(values.cumsum(-1)[:, :-1], (1, 0))


def _sum_after(values: Tensor) -> Tensor:
    """Return, at each place, the sum of the values after it."""
    return _sum_before(values.flip(-1)).flip(-1)


def _spread(values: Tensor) -> float:
    """Return the largest range of a row, from its lowest to its highest value; NaN where one is."""
    return (values.amax(-1) - values.amin(-1)).amax().item() if len(values) else 0.0


def _by_log_sums(u: Tensor, v: Tensor, in_top_k: Tensor, needs: Sequence[bool]) -> Result:
    """Return the same for values of any spread, at several times the cost."""
    with torch.enable_grad():
        u, v = (values.detach().requires_grad_(any(needs)) for values in (u, v))
        log_first, log_second = _log_first(u, in_top_k), _log_second(u, in_top_k)
        gap = u - v
        first, second = log_first.softmax(-1), log_second.softmax(-1)
        mean_gap = (first * gap[:, :-1]).sum(-1) - (second * gap[:, 1:]).sum(-1)
        value = mean_gap - log_second.logsumexp(-1) + _log_second(v, in_top_k).logsumexp(-1)
        on_u, on_v = torch.autograd.grad(value.sum(), (u, v)) if any(needs) else (None, None)
    return value.detach(), on_u, on_v


def _log_first(u: Tensor, in_top_k: Tensor) -> Tensor:
    """Return log(Z first_i) for i = 0 ... K - 2."""
    after = torch.where(in_top_k, -u, FLOOR).flip(-1).logcumsumexp(-1).flip(-1)
    return u[:, :-1] + after[:, 1:]


def _log_second(u: Tensor, in_top_k: Tensor) -> Tensor:
    """Return log(Z second_j) for j = 1 ... K - 1; their sum is Z."""
    before = u.logcumsumexp(-1)
    return torch.where(in_top_k[:, 1:], before[:, :-1] - u[:, 1:], FLOOR)
