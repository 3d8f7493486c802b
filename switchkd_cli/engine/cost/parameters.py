"""A model's parameters, counted on the model itself, built without memory for its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

from switchkd_cli.engine.models.llava import Llava

PARTS = ("vision", "projector", "language")


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by part: `total` (a tied head counts once), and `trainable`: those that the forward pass uses."""

    total: dict[str, int]
    trainable: dict[str, int]

    @property
    def all(self) -> int:
        return sum(self.total.values())

    def trained(self, parts: frozenset[str]) -> int:
        """How many parameters a stage trains that trains these parts."""
        return sum(self.trainable[part] for part in parts)


def parameters(config: LlavaConfig) -> Parameters:
    """Count a model's parameters, with the code that later picks what a stage trains.

    Raises what transformers raises.
    """
    with torch.device("meta"):
        model = Llava(AutoModelForImageTextToText.from_config(config), None)  # type: ignore[arg-type]
    unique = {part: {id(p): p for m in model.parts[part] for p in m.parameters()}.values() for part in PARTS}
    return Parameters(
        {part: sum(p.numel() for p in unique[part]) for part in PARTS},
        {part: sum(p.numel() for p in model.reached(part).values()) for part in PARTS},
    )
