"""The switch's adapter: it makes a student's visual features into what the teacher's projector reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from switchkd_cli.engine.batch import PerImage, apply
from switchkd_cli.engine.models.blueprint import Blueprint

FILE = "switch_adapter.safetensors"
"""Its weights in the output of a stage that trained it. The exported student never has this file."""


class FeatureAdapter(nn.Module):
    """A linear map with bias for each level of features, then a bilinear resize where the grids differ.

    A map starts as an isometry with bias 0, which keeps the features' lengths and angles as far as the widths allow: between
    equal widths it is the identity, so that the switch starts as it is without an adapter; else it is drawn from the seed.
    The map comes first as the smaller grid is usually the student's; both orders give the same features, to rounding.
    """

    def __init__(self, ours: int, theirs: int, levels: int = 1, sides: tuple[int, int] = (1, 1), seed: int = 0) -> None:
        """From width `ours` to `theirs`, and from a grid of the first of `sides` to one of the second."""
        super().__init__()
        self.sides = sides
        maps = [nn.utils.skip_init(nn.Linear, ours, theirs) for _ in range(levels)]
        self.maps = nn.ModuleList(maps)
        generator = torch.Generator().manual_seed(seed)
        for level in maps:
            nn.init.zeros_(level.bias)
            if ours == theirs:
                nn.init.eye_(level.weight)
            else:
                nn.init.orthogonal_(level.weight, generator=generator)

    @classmethod
    def between(cls, student: Blueprint, teacher: Blueprint, seed: int) -> FeatureAdapter:
        """Return the adapter of two models that fit."""
        ours, theirs = student.feature_map, teacher.feature_map
        return cls(ours.width, theirs.width, theirs.levels, (ours.side, theirs.side), seed)

    def forward(self, features: PerImage) -> PerImage:
        """V_S's features [P, F, width x levels] -> V_T's [P, F', width x levels], or P tensors; those of no image as they are."""
        return apply(self._adapted, features) if len(features) else features

    def _adapted(self, features: Tensor) -> Tensor:
        parts = features.chunk(len(self.maps), -1)
        adapted = torch.cat([level(part) for level, part in zip(self.maps, parts, strict=True)], -1)
        ours, theirs = self.sides
        if ours == theirs:
            return adapted
        grids = adapted.unflatten(-2, (-1, ours, ours))  # [..., tiles, rows, columns, D]
        resized = interpolate(grids.flatten(0, -4).movedim(-1, 1), (theirs, theirs), mode="bilinear")
        return resized.movedim(1, -1).reshape(*adapted.shape[:-2], -1, adapted.shape[-1])
