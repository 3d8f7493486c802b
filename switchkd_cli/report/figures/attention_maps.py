"""Attention from a token of the question to the patches of the picture, as in the paper's Figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from switchkd_cli.report.figures.style import TEACHER, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

HEAT = "YlOrRd"  # darker the more: it also reads in grey
SMOOTH = "bicubic"  # the picture itself; left to matplotlib, it would differ between PNG and SVG
PALE = 0.55  # share of white in the picture below a map


@dataclass(frozen=True)
class Map:
    """One model's attention to one picture, and what it answers."""

    weights: np.ndarray
    """[rows, columns] of the patches, NaN where a patch is not seen; they sum to the share `looked`."""
    answer: str

    @property
    def looked(self) -> float:
        """Share of the token's attention that goes to the picture."""
        return float(np.nansum(self.weights))


@dataclass(frozen=True)
class Question:
    """A picture, a question about it, the token looked from, and every model's map."""

    picture: Image
    text: str
    token: str
    answer: str
    maps: tuple[Map, ...]


def attention(questions: Sequence[Question], names: Sequence[str], colours: Sequence[str]) -> Figure:
    """A line for each question: the picture, then each model's map over it, on a scale of its own.

    `names` and `colours` are the students', whose maps come last; a map before them is the teacher's.
    """
    width = 1 + len(questions[0].maps)
    teachers = width - 1 - len(names)
    looks = [*[("teacher", TEACHER)] * teachers, *zip(names, colours, strict=True)]
    drawn = figure(1.9 * width, 2.55 * len(questions) + 0.5)
    lines = drawn.subplots(len(questions), width, squeeze=False)
    for line, question in zip(lines, questions, strict=True):
        _picture(line[0], question)
        for axes, seen, (name, colour) in zip(line[1:], question.maps, looks, strict=True):
            _map(axes, seen, question.picture, colour)
            axes.set_title("\n".join(_lines(f"{name} ({seen.looked:.0%})")), fontsize=8.5)
    drawn.suptitle(
        "attention from the bracketed token to the picture's patches, mean over layers and heads (paper, Figure 3)\n"
        "darkest: the map's own highest patch · per cent: share of the token's attention that goes to the picture",
        fontsize=8.5,
    )
    return drawn


def _picture(axes: Axes, question: Question) -> None:
    axes.imshow(question.picture, interpolation=SMOOTH)
    _bare(axes)
    before, word, after = question.text.rpartition(question.token)
    marked = f"{before}[{word}]{after}"
    axes.set_title("\n".join(_lines(marked)), fontsize=8.5)
    axes.set_xlabel(f"right: {question.answer}", fontsize=8.5)


def _map(axes: Axes, seen: Map, picture: Image, colour: str) -> None:
    across, down = picture.size
    below = PALE + (1 - PALE) * np.asarray(picture.convert("L")) / 255
    axes.imshow(below, cmap="gray", vmin=0, vmax=1, extent=(0, across, down, 0), interpolation=SMOOTH)
    strength = np.nan_to_num(seen.weights / np.nanmax(seen.weights))
    # not "none", with which an SVG loses the alpha
    heat = {"cmap": HEAT, "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    axes.imshow(strength, alpha=0.85 * strength, extent=(0, across, down, 0), **heat)
    _bare(axes)
    for side in axes.spines.values():  # the row's colour, as in the other pictures
        side.set(visible=True, color=colour, linewidth=2.5)
    axes.set_xlabel(f"says: {seen.answer}", fontsize=8.5)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)


def _lines(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 26)[:4]
