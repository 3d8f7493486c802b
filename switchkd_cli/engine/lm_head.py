"""LM heads as plain weights: from hidden states to logits, in chunks of positions."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

LOGITS = 2**24
"""Number of logits of one path that exist at a time, 64 MiB in float32: 110 positions of 151,936."""
ON_CPU = 2**23
"""There half as many: up to 32 MiB the C library's allocator uses a buffer again, and gives back what is larger each time."""


def positions(columns: int, device: str = "cuda") -> int:
    """Return the number of positions in a chunk on a device of this type."""
    return max(1, min(LOGITS, ON_CPU if device == "cpu" else LOGITS) // columns)


class Heads(NamedTuple):
    """The head weights [V, D] of each path, from hidden states [N, D] to logits; only the first columns are used.

    `columns`: how many, by path. `dtype` is the dtype of the matrix product; None: the hidden states' own. `caps`: see `capped`.
    """

    weights: Mapping[str, Tensor]
    columns: Mapping[str, int]
    dtype: torch.dtype | None = None
    caps: Mapping[str, float | None] = {}

    def cast(self, values: Tensor) -> Tensor:
        """Return hidden states or weights in the dtype of the product."""
        return values if self.dtype is None else values.to(self.dtype)

    def __call__(self, path: str, hidden: Tensor) -> Tensor:
        """Return logits [N, columns] of a path's hidden states."""
        weights = self.cast(self.weights[path][: self.columns[path]])
        return capped(linear(self.cast(hidden), weights), self.caps.get(path))


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return logits that a tanh keeps between -cap and cap (Gemma's `final_logit_softcapping`); None: as they are."""
    return logits if cap is None else (logits / cap).tanh() * cap
