"""Is what is trained on what is written down: the chunked objective of a micro-batch against all logits at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from switchkd_cli.engine.per_image import apply
from switchkd_cli.engine.training.chunked import AtOnce, Chunks, Given
from switchkd_cli.engine.training.objective import Objective
from switchkd_cli.errors import CRASH, UserError

LOSS, GRADIENT = "check/loss", "check/gradient"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the largest value, by what the logits are computed in: sums of chunks are rounded elsewhere."""


def check(objective: Objective, given: Given) -> dict[str, float]:
    """How far the loss and its gradients on states and heads lie from the dense ones, relative to the largest of each.

    Nothing of the step is touched. Raises UserError (code CRASH) beyond what rounding explains.
    """
    parted, whole = (_taken(way(objective), given) for way in (Chunks, AtOnce))
    distances = [_distance(a, b) for a, b in zip(parted, whole, strict=True)]
    figures = {LOSS: distances[0], GRADIENT: max(distances[1:], default=0.0)}
    allowed = TOLERANCE[given.heads.dtype or _dtype(given)]
    if far := [f"{name} is {value:.2g}" for name, value in figures.items() if not value <= allowed]:
        raise UserError(
            f"in chunks the objective is not what it is at once: {', '.join(far)}, allowed {allowed:.0e}",
            hint="please report this with the recipe",
            code=CRASH,
        )
    return figures


def _taken(way: Callable[..., tuple[Tensor, Mapping[str, Tensor]]], given: Given) -> list[Tensor]:
    """The loss, and its gradients on copies of the states and heads that have one."""
    readings = {name: apply(_leaf, value) for name, value in given.readings.items()}
    heads = replace(given.heads, weights={path: _leaf(w) for path, w in given.heads.weights.items()})
    inputs = [*readings.values(), *heads.weights.values()]
    each = [one for value in inputs for one in ((value,) if isinstance(value, Tensor) else value)]
    leaves = [value for value in each if value.requires_grad]
    total, _ = way(given._replace(readings=readings, heads=heads))
    found = torch.autograd.grad(total, leaves, materialize_grads=True) if leaves else ()
    return [total.detach(), *found]


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _distance(one: Tensor, other: Tensor) -> float:
    largest = other.abs().amax().item() if other.numel() else 0.0
    apart = (one - other).abs().amax().item() if other.numel() else 0.0
    return apart / largest if largest else apart


def _dtype(given: Given) -> torch.dtype:
    return next(iter(given.heads.weights.values())).dtype
