"""One look for every picture: a row has the same colour and mark in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchkd_cli.report.results.finished_run import Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow is left out, too faint on white.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#7F7F7F"
FAINT = "#D0D0D0"
PALETTE = (BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY)
TEACHER = BLACK

KNOWN = {
    "switch-kd": (BLUE, "o"),
    "sft": (ORANGE, "s"),
    "align": (GREEN, "^"),
    "vsd": (SKY, "v"),
    "sft-compute": (RED, "D"),
    "sft-frozen": (PINK, "P"),
}
"""Rows that many recipes share keep their look from picture to picture and from recipe to recipe."""
FORMS = ("png", "svg")
MARKS = "oXs^vDP*<>hp"

SETTINGS = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "switchkd",  # the same picture is the same file
}


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a recipe with its runs, and how it looks."""

    title: str
    runs: tuple[Scored, ...]
    colour: str
    mark: str

    @property
    def name(self) -> str:
        return self.runs[0].row


def rows_of(runs: Sequence[Scored]) -> list[Row]:
    """Runs by recipe and row, in the order given."""
    groups: dict[tuple[str, str], list[Scored]] = {}
    for run in runs:
        groups.setdefault((run.recipe, run.row), []).append(run)
    several = len({run.recipe for run in runs if run.is_run}) > 1
    looks = _looks([row for _, row in groups])
    return [
        Row(
            f"{recipe}: {own[0].title}" if several and own[0].is_run else own[0].title,
            tuple(own),
            *looks[i],
        )
        for i, ((recipe, _), own) in enumerate(groups.items())
    ]


def _looks(names: Sequence[str]) -> list[tuple[str, str]]:
    """The known rows' own looks (once each), then what is left of colours and marks, over and over."""
    taken = set()
    fixed: list[tuple[str, str] | None] = []
    for name in names:
        look = KNOWN.get(name) if name not in taken else None
        taken |= {name} if look else set()
        fixed.append(look)
    used = {look[0] for look in fixed if look}
    spare = [c for c in PALETTE if c not in used] or [GREY]
    free: Iterator[tuple[str, str]] = (
        (spare[i % len(spare)], MARKS[i % len(MARKS)]) for i in range(len(names))
    )
    return [look or next(free) for look in fixed]


def figure(width: float, height: float, **layout: Any) -> Figure:
    """An empty figure, in inches. No screen and no global state: it is drawn by Agg when it is written."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", **layout)


def write(drawn: Figure, folder: Path, name: str, forms: Sequence[str] = FORMS) -> list[Path]:
    """`name`.png and `name`.svg, or one of them, in the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in forms]
    for path in paths:
        dated = {"Date": None} if path.suffix == ".svg" else {}
        drawn.savefig(path, dpi=160, facecolor="white", metadata=dated)
    return paths
