"""An objective computed from last states, a chunk of positions at a time: no more logits than a chunk's ever exist."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.lm_head import Heads, positions
from switchkd_cli.engine.paths import PATHS, reading
from switchkd_cli.engine.training.objective import Look, Objective, Tally

Logits = dict[str, Tensor]
Weigh = Callable[[Logits, Tensor], Tensor]  # logits and which positions they are of -> a scalar with a graph


class Given(NamedTuple):
    """What the objective of a micro-batch is computed from: readings, in front of the heads if there are any."""

    readings: Mapping[str, Tensor]
    heads: Heads | None
    batch: Batch
    keep: Tensor
    tally: Tally


class Chunks:
    """An objective for paths that stop in front of their heads.

    Each chunk goes through the heads and the losses and back at once, and leaves its gradient on the states and on the
    heads' weights. Losses that compare a row's positions with one another are given whole rows.
    """

    def __init__(self, objective: Objective) -> None:
        self.terms = objective.terms
        self.spoken = Objective([term for term in self.terms if objective.reads_logits(term)])
        self.beside = Objective([term for term in self.terms if not objective.reads_logits(term)])
        self.paths = tuple(sorted(self.spoken.readings))
        self.readings = self.beside.readings | {reading(path, "hidden") for path in self.paths}

    def __call__(self, given: Given, look: Look | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum that is minimised, to go back from once, and each term's share of it, unweighted.

        `look` is shown each chunk's logits, with the positions that they are of.
        """
        readings, heads, batch, keep, tally = given
        beside = self.beside(readings, batch, keep, tally)
        found = {name: value.detach() for name, value in beside.items()}

        def weigh(logits: Logits, part: Tensor) -> Tensor:
            parts = self.spoken(logits, batch, part, tally)
            for name, value in parts.items():
                found[name] = found.get(name, 0.0) + value.detach()
            if look is not None:
                look(logits, batch, part)
            return self.spoken.total(parts)

        total = self.beside.total(beside)
        if self.paths:
            states = [readings[reading(path, "hidden")] for path in self.paths]
            weights = [heads.weights[path] for path in self.paths]
            pieces = self._pieces(keep, heads.columns)
            total = total + _Ahead.apply(weigh, pieces, self.paths, heads, *states, *weights)
        return total, {term.name: found[term.name] for term in self.terms}

    def each(self, given: Given) -> Iterator[tuple[str, Tensor]]:
        """The terms that weigh something, one after another: name and weighted share, with a graph."""
        for term in self.terms:
            if term.weight:
                yield term.name, Chunks(Objective([term]))(given)[0]

    @torch.no_grad()
    def not_finite(self, terms: Sequence[str], given: Given) -> dict[str, set[str]]:
        """By term, the ids of the rows of the batch with a value that is no number."""
        readings, heads, batch, keep, tally = given
        found = self.beside.not_finite(terms, readings, batch, keep, tally)
        for at, part in self._pieces(keep, heads.columns):
            logits = {path: heads(path, readings[reading(path, "hidden")][at]) for path in self.paths}
            for name, rows in self.spoken.not_finite(terms, logits, batch, part, tally).items():
                found[name] = found.get(name, set()) | rows
        return found

    def _pieces(self, keep: Tensor, columns: int) -> list[tuple[slice, Tensor]]:
        """The chunks of the N positions of `keep` [B, T]: which of the N, and the same as a mask [B, T]."""
        most, places = positions(columns), keep.nonzero()
        if len(places) <= most:
            return [(slice(0, len(places)), keep)]
        if self.spoken.compares_positions:
            lengths = keep.sum(1).tolist()
        else:  # of one size: a short one at the end would read all of a head for a few positions
            lengths, most = [1] * len(places), math.ceil(len(places) / math.ceil(len(places) / most))
        return [(at, _mask(keep, places[at])) for at in _together(lengths, most)]


class AtOnce:
    """The same objective from all logits at once: what `Chunks` has to equal.

    It takes logits too, of paths whose heads nothing but their own pass can use.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective, self.readings = objective, objective.readings
        self.paths = tuple(path for path in PATHS if path in self.readings)

    def __call__(self, given: Given, look: Look | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Chunks`; the shares have their graph, too."""
        readings, batch, keep, tally = self._spoken(given), given.batch, given.keep, given.tally
        parts = self.objective(readings, batch, keep, tally)
        if look is not None:
            look({path: readings[path] for path in self.paths}, batch, keep)
        return self.objective.total(parts), parts

    def each(self, given: Given) -> Iterator[tuple[str, Tensor]]:
        """As `Chunks`."""
        parts = self(given)[1]
        yield from ((t.name, t.weight * parts[t.name]) for t in self.objective.terms if t.weight)

    def not_finite(self, terms: Sequence[str], given: Given) -> dict[str, set[str]]:
        """As `Chunks`."""
        return self.objective.not_finite(terms, self._spoken(given), given.batch, given.keep, given.tally)

    def _spoken(self, given: Given) -> Mapping[str, Tensor]:
        """The readings with the logits that are not among them."""
        missing = [path for path in self.paths if path not in given.readings]
        spoken = {path: given.heads(path, given.readings[reading(path, "hidden")]) for path in missing}
        return {**given.readings, **spoken}


class _Ahead(torch.autograd.Function):
    """A scalar of the logits of some paths, whose gradient is taken chunk by chunk on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        weigh: Weigh,
        pieces: Sequence[tuple[slice, Tensor]],
        paths: Sequence[str],
        heads: Heads,
        *tensors: Tensor,
    ) -> Tensor:
        """`tensors`: the states [N, D] of each path, then the weights [V, D] of each path's head."""
        needed = ctx.needs_input_grad[4:]
        slopes = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed, strict=True)]
        count = len(paths)
        states, of_states = tensors[:count], slopes[:count]
        weights, of_weights = tensors[count:], slopes[count:]
        cast = {id(weight): heads.cast(weight[: heads.columns]) for weight in weights}
        used = [cast[id(weight)] for weight in weights]  # teacher and switch have one
        moved = [i for i in range(count) if needed[i] or needed[count + i]]

        def through(at: slice, part: Tensor) -> Tensor:
            """A chunk there and back. Its logits and their gradients are gone before the next one's are there."""
            given = [heads.cast(each[at]) for each in states]
            logits = [linear(*pair) for pair in zip(given, used, strict=True)]
            leaves = [logits[i].requires_grad_() for i in moved]
            with torch.enable_grad():
                value = weigh(dict(zip(paths, logits, strict=True)), part)
            found = torch.autograd.grad(value, leaves, materialize_grads=True) if value.requires_grad else ()
            for i, slope in zip(moved, found, strict=bool(found)):
                if of_states[i] is not None:
                    of_states[i][at] = slope @ used[i]
                if of_weights[i] is not None:
                    _add_product(of_weights[i][: heads.columns], slope.T, given[i])
            return value.detach()

        total = sum(through(*piece) for piece in pieces)
        ctx.slopes = slopes
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes, ctx.slopes = ctx.slopes, None
        if slopes is None:
            raise RuntimeError("a chunked objective goes back once: its gradient is not kept")
        return None, None, None, None, *(None if slope is None else slope.mul_(grad) for slope in slopes)


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds a matrix product; in one dtype without a second [V, D]."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to.add_(left @ right)


def _together(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Neighbours that take `most` places or fewer together; a longer one is alone."""
    first = end = 0
    for length in lengths:
        if end > first and end + length - first > most:
            yield slice(first, end)
            first = end
        end += length
    yield slice(first, end)


def _mask(keep: Tensor, places: Tensor) -> Tensor:
    """Of some places [n, 2] of `keep` [B, T]."""
    mask = torch.zeros_like(keep)
    mask[places[:, 0], places[:, 1]] = True
    return mask
