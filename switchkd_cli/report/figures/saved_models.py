"""Figures that need the saved models: sorted logits and their knees (the paper's Figure 2b), attention (Figure 3)."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Image

from switchkd_cli.report.figures.style import DASHED, GREY, TEACHER, new_figure
from switchkd_cli.report.texts import TEXTS

MARKED = "#AA3377"  # no row's colour
NAMED = 3  # first choices that are named in a panel's title
HEAT = "YlOrRd"  # darker means more: it also reads in grey
SMOOTH = "bicubic"  # for the image; matplotlib's default would differ between PNG and SVG
PALE = 0.55  # share of white in the image below a map


class LogitsCurve(NamedTuple):
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


class KneePosition(NamedTuple):
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
        _plot_logits(axes, path, TEACHER if path.path == "teacher" else colour)
    drawn.axes[0].set_ylabel("logit, lowest 0 and highest 1")
    asked = f"“{position.question}” · the answer begins with “{position.answer}”"
    drawn.suptitle(f"{position.model}: sorted logits and their knees, paper Figure 2b\n{asked}", fontsize=9)
    return drawn


def _plot_logits(axes: Axes, path: LogitsCurve, colour: str) -> None:
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


class AttentionMap(NamedTuple):
    """One model's attention to one image, and its answer."""

    weights: np.ndarray
    """[rows, columns] of the patches, NaN where a patch has no token; the sum is the token's attention to the image."""
    answer: str


class AttentionExample(NamedTuple):
    """An image, a question about it, the token whose attention is shown, and every model's map."""

    image: Image
    question: str
    token: str
    answer: str
    maps: tuple[AttentionMap, ...]


def attention(examples: Sequence[AttentionExample], students: Sequence[tuple[str, str]]) -> Figure:
    """A line for each example: the image, then each model's map over it, on a scale of its own.

    `students` are the names and colours of the models whose maps come last; a map before them is the teacher's.
    """
    count = len(examples[0].maps)
    looks = [("teacher", TEACHER)] * (count - len(students)) + list(students)
    drawn = new_figure(1.9 * (1 + count), 2.55 * len(examples) + 0.5)
    lines = drawn.subplots(len(examples), 1 + count, squeeze=False)
    for (first, *others), example in zip(lines, examples, strict=True):
        first.imshow(example.image, interpolation=SMOOTH)
        before, word, after = example.question.rpartition(example.token)
        _frame(first, f"{before}[{word}]{after}", f"right: {example.answer}")
        for axes, each, (name, colour) in zip(others, example.maps, looks, strict=True):
            _plot_map(axes, each.weights, example.image)
            _frame(axes, f"{name} ({np.nansum(each.weights):.0%})", f"says: {each.answer}", colour)
    drawn.suptitle(TEXTS["figure"]["attention"]["title"], fontsize=8.5)
    return drawn


def _plot_map(axes: Axes, weights: np.ndarray, image: Image) -> None:
    below = PALE + (1 - PALE) * np.asarray(image.convert("L")) / 255
    extent = (0.0, float(image.width), float(image.height), 0.0)
    axes.imshow(below, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation=SMOOTH)
    strength = np.nan_to_num(weights / np.nanmax(weights))
    # interpolation is not "none", with which an SVG loses the alpha
    axes.imshow(strength, alpha=0.85 * strength, extent=extent, cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")


def _frame(axes: Axes, title: str, below: str, colour: str | None = None) -> None:
    """No ticks; the row's colour around a map, as in the other figures."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=colour is not None, color=colour, linewidth=2.5)
    axes.set_title("\n".join(textwrap.wrap(title, 26)[:4]), fontsize=8.5)
    axes.set_xlabel(below, fontsize=8.5)
