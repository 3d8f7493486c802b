"""The sizes of a model from which its memory and FLOPs are computed, the same for every family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionShape:
    """V: `positions` patches (and the class token, if any) through `layers` up to the feature layer.

    `input_norm`: there is a norm before the first layer (as in CLIP).
    """

    width: int
    inner: int
    layers: int
    positions: int
    patch: int
    image: int
    activation: str
    input_norm: bool = False

    @property
    def weights(self) -> int:
        """Number of weights in one layer's matrices: query, key, value, output, and the two of its MLP."""
        return 4 * self.width**2 + 2 * self.width * self.inner


@dataclass(frozen=True)
class ProjectorShape:
    """P: two matrices on each of `features`, then `tokens` (fewer than `features` where it pools)."""

    input: int
    width: int
    features: int
    tokens: int

    @property
    def weights(self) -> tuple[int, int]:
        """Number of weights in the first and in the second matrix."""
        return self.input * self.width, self.width**2

    @property
    def pooled(self) -> bool:
        return self.tokens < self.features


@dataclass(frozen=True)
class LanguageShape:
    """L. `queries` and `keys`: widths of all query heads and of all key heads together."""

    width: int
    inner: int
    layers: int
    heads: int
    queries: int
    keys: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """Number of weights in one layer's matrices: query and output, key and value, and the three of its gated MLP."""
        return 2 * self.width * self.queries + 2 * self.width * self.keys + 3 * self.width * self.inner


@dataclass(frozen=True)
class ModelShape:
    """A model as vision tower V, projector P and language model L (head included)."""

    vision: VisionShape
    projector: ProjectorShape
    language: LanguageShape
