"""The objective computed from hidden states in chunks of positions, so that the logits of one chunk exist at a time.

`compare_with_dense` checks it against the objective from all logits at once (`--check`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils._pytree import tree_leaves, tree_map

from switchkd_cli.engine.batch import Batch, PerImage
from switchkd_cli.engine.lm_head import Heads, capped, positions
from switchkd_cli.engine.paths import output_name
from switchkd_cli.engine.training.objective import LossInputs, Objective, OnLogits, OnValues
from switchkd_cli.errors import CRASH, UserError

LOSS, GRADIENT = "check/loss", "check/gradient"
TOLERANCE = 1e-9
"""Relative to the largest value, in float64: sums of chunks are rounded in other places."""

LossOfChunk = Callable[[dict[str, Tensor], Tensor], Tensor]
"""From logits and the mask of their positions to a scalar with a graph."""
Chunk = tuple[Sequence[slice], Tensor]  # which of each path's N positions, and the same as a mask [B, T]


class ChunkedObjective:
    """An objective for paths that stop in front of their heads.

    Each chunk goes through the heads and the losses and back at once, and leaves its gradient on the hidden states and
    on the heads' weights. Losses and scores that compare an example's positions with one another get whole examples.

    `dense`: the same objective from all logits at once, which the chunks must equal; for outputs with logits, of paths
    whose head weights only their own forward pass can use.
    """

    def __init__(self, objective: Objective, *, dense: bool = False) -> None:
        self.objective, self.dense = objective, dense
        of_logits = [term for term in objective.terms if dense or "logits" in term.kinds]
        self.compared = {path for term in of_logits for path in term.sides.values()}
        self.on_logits = objective.part(of_logits)
        self.on_others = objective.part([term for term in objective.terms if term not in of_logits])
        self.paths = tuple(sorted(name for name in self.on_logits.outputs if "." not in name))
        hidden = {output_name(path, "hidden") for path in self.paths}
        self.outputs = self.on_logits.outputs if dense else self.on_others.outputs | hidden

    def __call__(
        self, inputs: LossInputs, on_logits: OnLogits | None = None, on_values: OnValues | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum to minimise, for one backward pass, and each term's part of it, unweighted, detached.

        `on_logits` and `on_values` are called with what each chunk has.
        """
        with_graph = self.on_others(inputs, on_values)
        parts = {name: value.detach() for name, value in with_graph.items()}

        def loss_of_chunk(outputs: Mapping[str, PerImage], mask: Tensor) -> Tensor:
            of_chunk = self.on_logits(inputs._replace(outputs=outputs, keep=mask), on_values)
            for name, value in of_chunk.items():
                parts[name] = parts.get(name, 0.0) + value.detach()
            if on_logits is not None:
                on_logits({path: cast(Tensor, outputs[path]) for path in self.paths}, inputs.batch, mask)
            return self.on_logits.total(of_chunk, inputs.weights)

        if self.dense:
            return loss_of_chunk(inputs.outputs, inputs.keep), parts
        total = self.on_others.total(with_graph, inputs.weights)
        if self.paths:
            heads = inputs.heads
            assert heads is not None, "outputs without logits need the paths' heads"
            hidden = [cast(Tensor, inputs.outputs[output_name(path, "hidden")]) for path in self.paths]
            # what only a score names learns nothing
            hidden = [of if path in self.compared else of.detach() for path, of in zip(self.paths, hidden, strict=True)]
            # autograd doesn't tell a function that gradients are switched off
            weights = [heads.weights[path] for path in self.paths]
            weights = weights if torch.is_grad_enabled() else [of.detach() for of in weights]
            chunks = self._chunks(inputs.batch, inputs.keep, max(heads.columns[path] for path in self.paths))
            total = total + _GradientInForward.apply(loss_of_chunk, chunks, self.paths, heads, *hidden, *weights)
        return total, {term.name: parts[term.name] for term in self.objective.terms}

    def weighted_terms(self, inputs: LossInputs) -> Iterator[tuple[str, Tensor]]:
        """Yield the terms with a weight, one after another: name and weighted part, with its graph."""
        for term in self.objective.terms:
            if inputs.weights.get(term.name, float(term.weight)):
                yield term.name, ChunkedObjective(self.objective.part([term]), dense=self.dense)(inputs)[0]

    @torch.no_grad()
    def non_finite_rows(self, terms: Sequence[str], inputs: LossInputs) -> dict[str, set[str]]:
        """Return, for each of the terms named, the ids of the batch's examples with a non-finite value."""
        ids: dict[str, set[str]] = {name: set() for name in terms}

        def note(name: str, values: Tensor, rows: Tensor, weights: Tensor | None) -> None:
            values = values if weights is None else weights * values
            ids[name] |= {inputs.batch.ids[row] for row in rows[~values.isfinite()].unique().tolist()}

        named = [term for term in self.objective.terms if term.name in ids]
        ChunkedObjective(self.objective.part(named), dense=self.dense)(inputs, on_values=note)
        return ids

    def _chunks(self, batch: Batch, keep: Tensor, columns: int) -> list[Chunk]:
        """Return the chunks of `keep`: of whole examples where models read unlike texts, or positions are compared.

        Where a focus ranks examples, one chunk has all of them.
        """
        size, sides = positions(columns, keep.device.type), keep.split([of.turn.shape[1] for of in batch.readings], 1)
        most = max(int(batch.read_by(path, keep)[1].sum()) for path in self.paths)
        across = any("rows" in term.signature.positional or term.score is not None for term in self.on_logits.terms)
        across |= any(mean.by == "loss" for mean in self.on_logits.means.values())
        answers = [of.predicting("answer")[side] for of, side in zip(batch.readings, sides, strict=True)]
        unlike = not all(torch.equal(of, answers[0]) for of in answers)  # as texts have other prompts
        whole = batch.spans is not None or across or unlike
        unit = torch.arange(len(keep), device=keep.device)[:, None]  # the number of the example
        lengths = torch.stack([side.sum(1) for side in sides]).amax(0).tolist()
        if not whole:  # or of the position among those of `keep`
            unit = torch.cat([side.flatten().cumsum(0).view_as(side) - 1 for side in sides], 1)
            # of equal size: a short chunk at the end would read a whole head for a few positions
            lengths, size = [1] * most, math.ceil(most / max(1, math.ceil(most / size)))
        together = any(term.focus is not None and term.focus.of == "examples" for term in self.on_logits.terms)
        parts = _group_neighbours(lengths, size) if most > size and not together else ()
        masks = [keep & (part.start <= unit) & (unit < part.stop) for part in parts] or [keep]
        counts = ([int(batch.read_by(path, mask)[1].sum()) for mask in masks] for path in self.paths)
        slices = [[slice(*ends) for ends in pairwise([0, *accumulate(of_path)])] for of_path in counts]
        return list(zip(zip(*slices, strict=True), masks, strict=True))


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
        by_id = {id(of): heads.cast(of[: heads.columns[path]]) for path, of in zip(paths, weights, strict=True)}
        cast_weights = [by_id[id(weight)] for weight in weights]  # teacher and switch share one
        trained = [i for i in range(count) if needed[i] or needed[count + i]]

        def through(at: Sequence[slice], mask: Tensor) -> Tensor:
            """Forward and backward of a chunk. Its logits and their gradients are freed before the next chunk's exist."""
            states = [heads.cast(each[here]) for each, here in zip(hidden, at, strict=True)]
            logits = [linear(*pair) for pair in zip(states, cast_weights, strict=True)]
            leaves = [logits[i].requires_grad_() for i in trained]
            with torch.enable_grad():
                finished = {path: capped(of, heads.caps.get(path)) for path, of in zip(paths, logits, strict=True)}
                value = loss_of_chunk(finished, mask)
            if value.requires_grad:
                on_logits = torch.autograd.grad(value, leaves, materialize_grads=True)
                for i, gradient in zip(trained, on_logits, strict=True):
                    if (of_hidden := on_hidden[i]) is not None:
                        of_hidden[at[i]] = gradient @ cast_weights[i]
                    if (of_weight := on_weights[i]) is not None:
                        _add_product(of_weight[: heads.columns[paths[i]]], gradient.T, states[i])
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
    first = total = 0
    for i, length in enumerate(lengths):
        if i > first and total + length > size:
            yield slice(first, i)
            first, total = i, 0
        total += length
    yield slice(first, len(lengths))


def compare_with_dense(objective: Objective, inputs: LossInputs) -> dict[str, float]:
    """Return how far the chunked loss and its gradients lie from the dense ones, relative to the largest value of each.

    The gradients are those on hidden states and heads. Both are computed in float64, where rounding hides no fault and
    passes for none, whatever the processor. The step itself is not changed. Raises UserError (code CRASH) for a
    distance beyond rounding.
    """
    heads = inputs.heads
    assert heads is not None
    ways = (ChunkedObjective(objective, dense=dense) for dense in (False, True))
    chunked, dense = (_loss_and_gradients(way, inputs, heads) for way in ways)
    distances = [_distance(a, b) for a, b in zip(chunked, dense, strict=True)]
    figures = {LOSS: distances[0], GRADIENT: max(distances[1:], default=0.0)}
    if far := [f"{name} is {value:.2g}" for name, value in figures.items() if not value <= TOLERANCE]:
        what = f"chunked and dense objectives differ beyond rounding: {', '.join(far)}, allowed {TOLERANCE:.0e}"
        raise UserError(what, hint="please report this with the recipe", code=CRASH)
    return figures


def _loss_and_gradients(objective: ChunkedObjective, inputs: LossInputs, heads: Heads) -> list[Tensor]:
    """Return the loss, and its gradients on float64 copies of those outputs and head weights that need one."""
    given = dict(inputs.outputs), dict(heads.weights)
    copies = {id(of): of.detach().double().requires_grad_(of.requires_grad) for of in tree_leaves(given)}
    outputs, weights = tree_map(lambda of: copies[id(of)], given)  # teacher and switch share one head
    heads = heads._replace(weights=weights, dtype=None)
    leaves = [of for of in copies.values() if of.requires_grad]
    if objective.dense:
        outputs |= {path: heads(path, cast(Tensor, outputs[output_name(path, "hidden")])) for path in objective.paths}
    total, _ = objective(inputs._replace(outputs=outputs, heads=heads))
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True) if leaves else ()
    return [total.detach(), *gradients]


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the largest distance of two tensors, relative to the largest value of the other one."""
    largest, apart = (values.abs().amax().item() if values.numel() else 0.0 for values in (other, one - other))
    return apart / largest if largest else apart
