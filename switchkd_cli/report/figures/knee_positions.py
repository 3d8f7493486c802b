"""The sorted logits of one real position and their knees, as in the paper's Figure 2b."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from switchkd_cli.report.figures.style import DASHED, GREY, TEACHER, new_figure

MARKED = "#AA3377"  # no row's colour
NAMED = 3  # first choices that are named in a panel's title


@dataclass(frozen=True)
class LogitsCurve:
    """One path's logits at one position, descending."""

    path: str
    logits: np.ndarray
    """[V] descending."""
    window: int | None
    """The number of highest logits among which the knee is found; None: all."""
    knee: int
    """1 + the rank of the knee: how many logits lie at or before it."""
    k: int
    """The term's k: the knee within its bounds."""
    first: tuple[str, ...]
    """The tokens of the highest logits."""


@dataclass(frozen=True)
class KneePosition:
    """A real position of the training data, and each path's logits there."""

    model: str
    """Title and seed of the run."""
    question: str
    answer: str
    """The token that the answer begins with."""
    paths: tuple[LogitsCurve, ...]


def knees(position: KneePosition, colour: str) -> Figure:
    """One panel per path: the curve, normalised to 1 x 1, the anti-diagonal, and the largest gap between them.

    `colour` is the row's, for the paths that start from the student's vision.
    """
    drawn = new_figure(3.7 * len(position.paths), 4.5)
    panels = drawn.subplots(1, len(position.paths), squeeze=False, sharey=True).flat
    for axes, path in zip(panels, position.paths, strict=True):
        _plot(axes, path, TEACHER if path.path == "teacher" else colour)
    drawn.axes[0].set_ylabel("logit, lowest 0 and highest 1")
    asked = f"“{position.question}” · the answer begins with “{position.answer}”"
    drawn.suptitle(f"{position.model}: sorted logits and their knees, paper Figure 2b\n{asked}", fontsize=9)
    return drawn


def _plot(axes: Axes, path: LogitsCurve, colour: str) -> None:
    logits = path.logits[: path.window]
    y = (logits - logits[-1]) / max(logits[0] - logits[-1], np.finfo(float).tiny)  # 0 to 1, as in Kneedle
    ranks = np.arange(1, len(y) + 1)
    diagonal = 1 - (ranks - 1) / max(1, len(y) - 1)
    rank = path.knee - 1
    axes.plot(ranks, diagonal, color=GREY, lw=1, ls=DASHED, label="anti-diagonal")
    axes.plot(ranks, y, color=colour, lw=1.8, label="sorted logits")
    axes.vlines(path.knee, y[rank], diagonal[rank], color=MARKED, lw=1.4, label="largest gap: the knee")
    axes.plot(path.knee, y[rank], "o", color=MARKED, ms=6)
    if path.k != path.knee:
        axes.axvline(path.k, color=MARKED, lw=0.8, ls=":", label="bound of k")
    first = "first: " + ", ".join(f"“{token}”" for token in path.first[:NAMED])
    k = f"k = {path.k}" if path.k == path.knee else f"knee at {path.knee}, bounded to k = {path.k}"
    axes.set_title(f"{path.path}: {k} of {len(y):,}\n{first}")
    axes.set_xlabel("rank of the logit")
    axes.legend(loc="upper right")
