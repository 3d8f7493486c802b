"""The objective computed from hidden states in chunks of positions, so that the logits of one chunk exist at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from switchkd_cli.engine.lm_head import Heads, positions
from switchkd_cli.engine.paths import PATHS, output_name
from switchkd_cli.engine.training.objective import LossInputs, Objective, OnLogits

Logits = dict[str, Tensor]
LossOfChunk = Callable[[Logits, Tensor], Tensor]  # logits, and the mask of their positions -> a scalar with a graph
Chunk = tuple[slice, Tensor]  # which of the N positions, and the same as a mask [B, T]


class ChunkedObjective:
    """An objective for paths that stop in front of their heads.

    Each chunk goes through the heads and the losses and back at once, and leaves its gradient on the hidden states and
    on the heads' weights. Losses that compare an example's positions with one another get whole examples.
    """

    def __init__(self, objective: Objective) -> None:
        self.terms = objective.terms
        self.on_logits = Objective([term for term in self.terms if objective.reads_logits(term)])
        self.on_others = Objective([term for term in self.terms if not objective.reads_logits(term)])
        self.paths = tuple(sorted(self.on_logits.outputs))
        self.outputs = self.on_others.outputs | {output_name(path, "hidden") for path in self.paths}

    def __call__(self, inputs: LossInputs, on_logits: OnLogits | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum to minimise, for one backward pass, and each term's part of it, unweighted, detached.

        `on_logits` is called with each chunk's logits.
        """
        with_graph = self.on_others(inputs)
        parts = {name: value.detach() for name, value in with_graph.items()}

        def loss_of_chunk(logits: Logits, mask: Tensor) -> Tensor:
            of_chunk = self.on_logits(inputs._replace(outputs=logits, keep=mask))
            for name, value in of_chunk.items():
                parts[name] = parts.get(name, 0.0) + value.detach()
            if on_logits is not None:
                on_logits(logits, inputs.batch, mask)
            return self.on_logits.total(of_chunk)

        total = self.on_others.total(with_graph)
        if self.paths:
            heads = heads_of(inputs)
            hidden = [inputs.outputs[output_name(path, "hidden")] for path in self.paths]
            weights = [heads.weights[path] for path in self.paths]
            chunks = self._chunks(inputs.keep, heads.columns)
            total = total + _GradientInForward.apply(loss_of_chunk, chunks, self.paths, heads, *hidden, *weights)
        return total, {term.name: parts[term.name] for term in self.terms}

    def weighted_terms(self, inputs: LossInputs) -> Iterator[tuple[str, Tensor]]:
        """Yield the terms with a weight, one after another: name and weighted part, with its graph."""
        for term in self.terms:
            if term.weight:
                yield term.name, ChunkedObjective(Objective([term]))(inputs)[0]

    @torch.no_grad()
    def non_finite_rows(self, terms: Sequence[str], inputs: LossInputs) -> dict[str, set[str]]:
        """Return, for each of the terms named, the ids of the batch's examples with a non-finite value."""
        ids = self.on_others.non_finite_rows(terms, inputs)
        heads = heads_of(inputs)
        for at, mask in self._chunks(inputs.keep, heads.columns):
            logits = {path: heads(path, _hidden(inputs, path)[at]) for path in self.paths}
            of_chunk = self.on_logits.non_finite_rows(terms, inputs._replace(outputs=logits, keep=mask))
            for name, rows in of_chunk.items():
                ids[name] = ids.get(name, set()) | rows
        return ids

    def _chunks(self, keep: Tensor, columns: int) -> list[Chunk]:
        """Return the chunks of the N positions of `keep` [B, T]."""
        size, places = positions(columns), keep.nonzero()
        if len(places) <= size:
            return [(slice(0, len(places)), keep)]
        if self.on_logits.compares_positions:
            lengths = keep.sum(1).tolist()
        else:  # of equal size: a short one at the end would read a whole head for a few positions
            lengths, size = [1] * len(places), math.ceil(len(places) / math.ceil(len(places) / size))
        chunks = []
        for at in _group_neighbours(lengths, size):
            mask = torch.zeros_like(keep)
            mask[places[at, 0], places[at, 1]] = True
            chunks.append((at, mask))
        return chunks


class DenseObjective:
    """The same objective from all logits at once: what `ChunkedObjective` must equal.

    It also takes outputs with logits, of paths whose head weights only their own forward pass can use.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective, self.outputs = objective, objective.outputs
        self.paths = tuple(path for path in PATHS if path in self.outputs)

    def __call__(self, inputs: LossInputs, on_logits: OnLogits | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """As `ChunkedObjective`; the parts have their graph, too."""
        inputs = self._with_logits(inputs)
        parts = self.objective(inputs)
        if on_logits is not None:
            logits = {path: cast(Tensor, inputs.outputs[path]) for path in self.paths}
            on_logits(logits, inputs.batch, inputs.keep)
        return self.objective.total(parts), parts

    def weighted_terms(self, inputs: LossInputs) -> Iterator[tuple[str, Tensor]]:
        """As `ChunkedObjective`."""
        parts = self(inputs)[1]
        yield from ((t.name, t.weight * parts[t.name]) for t in self.objective.terms if t.weight)

    def non_finite_rows(self, terms: Sequence[str], inputs: LossInputs) -> dict[str, set[str]]:
        """As `ChunkedObjective`."""
        return self.objective.non_finite_rows(terms, self._with_logits(inputs))

    def _with_logits(self, inputs: LossInputs) -> LossInputs:
        """Return the inputs with the logits that they lack."""
        missing = [path for path in self.paths if path not in inputs.outputs]
        logits = {path: heads_of(inputs)(path, _hidden(inputs, path)) for path in missing}
        return inputs._replace(outputs={**inputs.outputs, **logits})


def heads_of(inputs: LossInputs) -> Heads:
    """Return the heads of inputs that come without logits."""
    if inputs.heads is None:
        raise ValueError("outputs without logits need the paths' heads")
    return inputs.heads


def _hidden(inputs: LossInputs, path: str) -> Tensor:
    return cast(Tensor, inputs.outputs[output_name(path, "hidden")])


class _GradientInForward(torch.autograd.Function):
    """A scalar of some paths' logits, whose gradient is computed chunk by chunk during the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        loss_of_chunk: LossOfChunk,
        chunks: Sequence[Chunk],
        paths: Sequence[str],
        heads: Heads,
        *tensors: Tensor,
    ) -> Tensor:
        """`tensors`: the hidden states [N, D] of each path, then the head weights [V, D] of each path."""
        needed = ctx.needs_input_grad[4:]
        gradients = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed, strict=True)]
        count = len(paths)
        hidden, on_hidden = tensors[:count], gradients[:count]
        weights, on_weights = tensors[count:], gradients[count:]
        by_id = {id(weight): heads.cast(weight[: heads.columns]) for weight in weights}
        cast_weights = [by_id[id(weight)] for weight in weights]  # teacher and switch share one
        trained = [i for i in range(count) if needed[i] or needed[count + i]]

        def through(at: slice, mask: Tensor) -> Tensor:
            """Forward and backward of a chunk. Its logits and their gradients are freed before the next chunk's exist."""
            states = [heads.cast(each[at]) for each in hidden]
            logits = [linear(*pair) for pair in zip(states, cast_weights, strict=True)]
            leaves = [logits[i].requires_grad_() for i in trained]
            with torch.enable_grad():
                value = loss_of_chunk(dict(zip(paths, logits, strict=True)), mask)
            if value.requires_grad:
                on_logits = torch.autograd.grad(value, leaves, materialize_grads=True)
                for i, gradient in zip(trained, on_logits, strict=True):
                    if (of_hidden := on_hidden[i]) is not None:
                        of_hidden[at] = gradient @ cast_weights[i]
                    if (of_weight := on_weights[i]) is not None:
                        _add_product(of_weight[: heads.columns], gradient.T, states[i])
            return value.detach()

        total = sum((through(*chunk) for chunk in chunks), torch.zeros(()))
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("a chunked objective allows one backward pass: its gradient is not kept")
        return None, None, None, None, *(None if g is None else g.mul_(grad) for g in gradients)


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product in place; without a second [V, D] if the dtypes agree."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to.add_(left @ right)


def _group_neighbours(lengths: Sequence[int], size: int) -> Iterator[slice]:
    """Yield slices of neighbours whose lengths add up to at most `size`; a longer one is alone."""
    first = end = 0
    for length in lengths:
        if end > first and end + length - first > size:
            yield slice(first, end)
            first = end
        end += length
    yield slice(first, end)
