"""One process's share of a step, and what all shares come to: one line is logged, whoever computed what."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NotFinite:
    """A figure of a step that is no number, and the ids of the rows that it comes from."""

    figure: str
    value: float
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """What a process found: its part of each term's loss, what broke, and figures of its last micro-batch, which looked
    at so many positions."""

    losses: dict[str, float]
    broken: list[NotFinite]
    seen: dict[str, float]
    positions: int


def summed(shares: Sequence[Share]) -> dict[str, float]:
    """Each term's loss: the tally has divided every process's part by the positions of all."""
    return {name: sum(share.losses[name] for share in shares) for name in shares[0].losses}


def averaged(shares: Sequence[Share]) -> dict[str, float]:
    """The diagnostics' mean over those who have them, by the positions that each looked at.

    Exact for means over positions; of quantiles and norms it is their mean.
    """
    if len(shares) == 1:
        return shares[0].seen
    figures = {}
    for name in dict.fromkeys(name for share in shares for name in share.seen):
        having = [share for share in shares if name in share.seen and share.positions]
        weight = sum(share.positions for share in having)
        if weight:
            figures[name] = sum(share.positions * share.seen[name] for share in having) / weight
    return figures
