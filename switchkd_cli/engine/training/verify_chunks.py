"""Check the chunked objective of a micro-batch against the dense one (`--check`)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from switchkd_cli.engine.per_image import apply
from switchkd_cli.engine.training.chunked import ChunkedObjective, DenseObjective, heads_of
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.errors import CRASH, UserError

LOSS, GRADIENT = "check/loss", "check/gradient"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative to the largest value, by the dtype of the logits: sums of chunks are rounded in other places."""


def compare_with_dense(objective: Objective, inputs: LossInputs) -> dict[str, float]:
    """Return how far the chunked loss and its gradients lie from the dense ones, relative to the largest value of each.

    The gradients are those on hidden states and heads. The step itself is not changed. Raises UserError (code CRASH)
    for a distance beyond rounding.
    """
    chunked, dense = (_loss_and_gradients(way(objective), inputs) for way in (ChunkedObjective, DenseObjective))
    distances = [_distance(a, b) for a, b in zip(chunked, dense, strict=True)]
    figures = {LOSS: distances[0], GRADIENT: max(distances[1:], default=0.0)}
    heads = heads_of(inputs)
    allowed = TOLERANCE[heads.dtype or next(iter(heads.weights.values())).dtype]
    if far := [f"{name} is {value:.2g}" for name, value in figures.items() if not value <= allowed]:
        raise UserError(
            f"chunked and dense objectives differ beyond rounding: {', '.join(far)}, allowed {allowed:.0e}",
            hint="please report this with the recipe",
            code=CRASH,
        )
    return figures


def _loss_and_gradients(way: ChunkedObjective | DenseObjective, inputs: LossInputs) -> list[Tensor]:
    """Return the loss, and its gradients on copies of those outputs and head weights that need one."""
    outputs = {name: apply(_leaf, value) for name, value in inputs.outputs.items()}
    heads = heads_of(inputs)
    heads = replace(heads, weights={path: _leaf(weight) for path, weight in heads.weights.items()})
    values = [*outputs.values(), *heads.weights.values()]
    tensors = [one for value in values for one in ((value,) if isinstance(value, Tensor) else value)]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    total, _ = way(inputs._replace(outputs=outputs, heads=heads))
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True) if leaves else ()
    return [total.detach(), *gradients]


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _distance(one: Tensor, other: Tensor) -> float:
    largest = other.abs().amax().item() if other.numel() else 0.0
    apart = (one - other).abs().amax().item() if other.numel() else 0.0
    return apart / largest if largest else apart
