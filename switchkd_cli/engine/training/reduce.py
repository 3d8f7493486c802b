"""Reduce per-process losses and diagnostics to one log line."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NonFinite:
    """A non-finite figure of a step, and the ids of the examples that it comes from."""

    figure: str
    value: float
    rows: tuple[str, ...]


@dataclass(frozen=True)
class ProcessFigures:
    """One process's figures of a step."""

    losses: dict[str, float]
    """Its part of each term's loss."""
    non_finite: list[NonFinite]
    diagnostics: dict[str, float]
    """Of its last micro-batch."""
    positions: int
    """The number of positions that the diagnostics are of."""


def sum_losses(processes: Sequence[ProcessFigures]) -> dict[str, float]:
    """Return each term's loss: the normalizers have divided every process's part by the positions of all."""
    return {name: sum(each.losses[name] for each in processes) for name in processes[0].losses}


def average_diagnostics(processes: Sequence[ProcessFigures]) -> dict[str, float]:
    """Return each diagnostic's mean over the processes that have it, weighted by their positions.

    This is exact for means over positions; of quantiles and norms it is the mean.
    """
    if len(processes) == 1:
        return processes[0].diagnostics
    figures = {}
    for name in dict.fromkeys(name for each in processes for name in each.diagnostics):
        having = [each for each in processes if name in each.diagnostics and each.positions]
        positions = sum(each.positions for each in having)
        if positions:
            figures[name] = sum(each.positions * each.diagnostics[name] for each in having) / positions
    return figures
