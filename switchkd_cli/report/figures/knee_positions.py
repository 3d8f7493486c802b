"""The sorted logits of one real position and their knees, as in the paper's Figure 2b."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from switchkd_cli.report.figures.style import GREY, TEACHER, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = "#AA3377"  # no row's colour
NAMED = 3  # first choices that are written at the curve


@dataclass(frozen=True)
class Sorted:
    """One path's logits at one position, descending."""

    path: str
    logits: np.ndarray
    """[V] descending."""
    window: int | None
    """The knee is sought among so many of them; None: among all."""
    knee: int
    """1 + the rank of the knee: how many logits lie at or before it."""
    k: int
    """What the term takes: the knee within its bounds."""
    first: tuple[str, ...]
    """The tokens of the highest logits."""


@dataclass(frozen=True)
class Position:
    """A real position of the training data, and what each path says there."""

    who: str
    question: str
    answer: str
    """The token that the answer begins with."""
    paths: tuple[Sorted, ...]


def knees(position: Position, colour: str) -> Figure:
    """One panel a path: the curve, normalised to 1 x 1, the anti-diagonal, and the largest gap between them.

    `colour` is the row's; the switch is its own eyes' doing.
    """
    drawn = figure(3.7 * len(position.paths), 4.5)
    panels = drawn.subplots(1, len(position.paths), squeeze=False, sharey=True).flat
    for axes, path in zip(panels, position.paths, strict=True):
        _panel(axes, path, TEACHER if path.path == "teacher" else colour)
    drawn.axes[0].set_ylabel("logit, lowest 0 and highest 1")
    asked = f"“{position.question}” · the answer begins with “{position.answer}”"
    drawn.suptitle(f"{position.who}: sorted logits and their knees, paper Figure 2b\n{asked}", fontsize=9)
    return drawn


def normalised(logits: np.ndarray) -> np.ndarray:
    """Descending logits [V] between 0 and 1, as Kneedle sees them."""
    return (logits - logits[-1]) / max(logits[0] - logits[-1], np.finfo(float).tiny)


def _panel(axes: Axes, path: Sorted, colour: str) -> None:
    y = normalised(path.logits[: path.window])
    ranks = np.arange(1, len(y) + 1)
    rank = path.knee - 1
    x = (ranks - 1) / max(1, len(y) - 1)
    axes.plot(ranks, 1 - x, color=GREY, lw=1, ls=(0, (4, 2)), label="anti-diagonal")
    axes.plot(ranks, y, color=colour, lw=1.8, label="sorted logits")
    axes.vlines(path.knee, y[rank], 1 - x[rank], color=MARKED, lw=1.4, label="largest gap: the knee")
    axes.plot(path.knee, y[rank], "o", color=MARKED, ms=6)
    if path.k != path.knee:
        axes.axvline(path.k, color=MARKED, lw=0.8, ls=":", label="bound of k")
    first = "first: " + ", ".join(f"“{token}”" for token in path.first[:NAMED])
    taken = f"k = {path.k}" if path.k == path.knee else f"knee at {path.knee}, bounded to k = {path.k}"
    axes.set_title(f"{path.path}: {taken} of {len(y):,}\n{first}")
    axes.set_xlabel("rank of the logit")
    axes.legend(loc="upper right")
