"""One look for every figure: a row has the same colour and mark in all of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from switchkd_cli.package_data import read_yaml
from switchkd_cli.report.results.finished_run import ScoredRun
from switchkd_cli.report.results.row_runs import RowRuns, group_by_row

_LISTED = read_yaml(__file__, "looks.yaml")
PALETTE = tuple(_LISTED["palette"].values())
GREY = PALETTE[-1]
KNOWN = {row: (_LISTED["palette"][colour], mark) for row, (colour, mark) in _LISTED["rows"].items()}
"""Colour and mark of rows that keep them in every figure."""
FAINT = "#D0D0D0"
TEACHER = "#000000"
DASHED = (0, (4, 2))
FORMS = ("png", "svg")
MARKS = "oXs^vDP*<>hp"
OUTLINE = re.compile(' d="[^"]*"')
"""The coordinates of one line or area in an SVG."""

SETTINGS = Path(__file__).with_name("report.mplstyle")


@dataclass(frozen=True, eq=False)
class PlottedRow(RowRuns):
    """A row's runs, its colour and its mark."""

    colour: str
    mark: str


def plotted_rows(runs: Sequence[ScoredRun]) -> list[PlottedRow]:
    """The runs by row, in the given order."""
    rows = group_by_row(runs, together=True)
    looks = zip(rows, _looks([row.row for row in rows]), strict=True)
    return [PlottedRow(row.name, row.title, row.runs, *look) for row, look in looks]


def _looks(names: Sequence[str]) -> list[tuple[str, str]]:
    """The known rows' own looks (once each), then the remaining colours and marks, over and over."""
    own = [KNOWN.get(name) if name not in names[:place] else None for place, name in enumerate(names)]
    used = {look[0] for look in own if look}
    spare = [colour for colour in PALETTE if colour not in used] or [GREY]
    free = zip(cycle(spare), cycle(MARKS), strict=False)
    return [look or next(free) for look in own]


def new_figure(width: float, height: float, **pads: Any) -> Figure:
    """An empty figure, in inches. No screen and no global state: it is drawn by Agg when it is written."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(**pads))


def legend_below(drawn: Figure, axes: Axes, most: int = 4, **more: Any) -> None:
    """A legend of the whole figure under it, of what `axes` show, in lines of `most` entries."""
    handles, labels = axes.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(most, len(labels)), **more)


def write(drawn: Figure, folder: Path, name: str, forms: Sequence[str] = FORMS) -> tuple[Path, ...]:
    """Write `name`.png and `name`.svg, or in other forms, into the folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{name}.{form}" for form in forms)
    for path in paths:
        undated = {"Date": None} if path.suffix == ".svg" else None
        drawn.savefig(path, dpi=160, facecolor="white", metadata=undated)
        if path.suffix == ".svg":  # a third less to keep in a repository, and nothing that an eye could see
            path.write_text(OUTLINE.sub(_one_decimal, path.read_text(encoding="utf-8")), encoding="utf-8")
    return paths


def _one_decimal(outline: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}", outline[0])
