"""The last step of a language model, taken apart from it: from states to logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

LOGITS = 2**24
"""Logits of one path that exist at a time, 64 MiB in float32: 110 positions of 151,936."""


def positions(columns: int) -> int:
    """Positions of a chunk."""
    return max(1, LOGITS // columns)


@dataclass(frozen=True)
class Heads:
    """By path, the weights [V, D] that its last states [N, D] become logits with; only the first `columns` are read.

    `dtype` is what this is computed in; none: in the states' own.
    """

    weights: Mapping[str, Tensor]
    columns: int
    dtype: torch.dtype | None = None

    def cast(self, values: Tensor) -> Tensor:
        """States or weights in the dtype of the product."""
        return values if self.dtype is None else values.to(self.dtype)

    def __call__(self, path: str, states: Tensor) -> Tensor:
        """Logits [N, columns] of a path's states."""
        return linear(self.cast(states), self.cast(self.weights[path][: self.columns]))
