"""Attention from a token of the question to the patches of the image, as in the paper's Figure 3."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Image

from switchkd_cli.report.figures.style import TEACHER, new_figure

HEAT = "YlOrRd"  # darker means more: it also reads in grey
SMOOTH = "bicubic"  # for the image; matplotlib's default would differ between PNG and SVG
PALE = 0.55  # share of white in the image below a map


@dataclass(frozen=True)
class AttentionMap:
    """One model's attention to one image, and its answer."""

    weights: np.ndarray
    """[rows, columns] of the patches, NaN where a patch has no token; the sum is the token's attention to the image."""
    answer: str


@dataclass(frozen=True)
class AttentionExample:
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
            _plot(axes, each.weights, example.image)
            _frame(axes, f"{name} ({np.nansum(each.weights):.0%})", f"says: {each.answer}", colour)
    drawn.suptitle(
        "attention from the bracketed token to the image's patches, mean over layers and heads (paper, Figure 3)\n"
        "darkest: the map's own highest patch · per cent: share of the token's attention that goes to the image",
        fontsize=8.5,
    )
    return drawn


def _plot(axes: Axes, weights: np.ndarray, image: Image) -> None:
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
