"""A model's parameters, counted on the model itself, built without memory for its weights."""

from __future__ import annotations

from dataclasses import dataclass

from switchkd_cli.engine.models.family import VisionLanguageModel


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


def parameters(model: VisionLanguageModel) -> Parameters:
    """Count a model's parameters, with the code that later picks what a stage trains; it may be without weights."""
    unique = {
        part: {id(p): p for module in modules for p in module.parameters()} for part, modules in model.parts.items()
    }
    return Parameters(
        {part: sum(p.numel() for p in held.values()) for part, held in unique.items()},
        {part: sum(p.numel() for p in model.used_parameters(part).values()) for part in unique},
    )
