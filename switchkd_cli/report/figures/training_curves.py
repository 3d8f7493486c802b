"""The lengths of what was trained on, and losses and diagnostics of every row over the last stage."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from switchkd_cli.recipe.schema import VALIDATION
from switchkd_cli.report.figures.style import DASHED, GREY, PALETTE, TEACHER, PlottedRow, new_figure
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.texts import TEXTS
from switchkd_cli.runs.run_folder import RunFolder

TEXT = TEXTS["figure"]["curves"]
GRID = np.linspace(0, 100, 41)  # per cent of the stage: rows with different numbers of steps share one axis
SMOOTHED = 0.04  # share of a stage over which a curve with a value at every step is averaged
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
DECADE = 10  # a positive curve that spans more gets a logarithmic axis
COLUMNS = 3
TEACHERS_K = re.compile("(k/.+)/[^/]+/mean")

Steps = Sequence[Mapping[str, Any]]
"""The logged steps of one run's last stage."""


Panel = tuple[str, Mapping[str, Any], str | None]
"""A title, names of logged values with their line styles, and the name of the teacher's own value."""


def lengths(rows: Sequence[PlottedRow]) -> Figure | None:
    """How many rows of each data set have how many characters, a panel a set; None where no run kept that."""
    kept = (of for row in rows for run in row.runs for of in run.info.get("lengths", {}).items())
    sets = dict.fromkeys((name, tuple(counts.items())) for name, counts in kept if counts)
    if not sets:
        return None
    height = ceil(len(sets) / COLUMNS)
    drawn = new_figure(11, 0.4 + 2.5 * height)
    for place, (name, counts) in enumerate(sets, 1):
        axes = drawn.add_subplot(height, min(COLUMNS, len(sets)), place)
        ends, numbers = [int(most) for most, _ in counts], [number for _, number in counts]
        axes.stairs(numbers, [ends[0] / 2, *ends], fill=True, color=GREY, zorder=2)  # above the grid
        axes.set_xscale("log", base=2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,.10g}")
        axes.set(title=f"{name}: {sum(numbers):,} rows", xlabel="characters of a row", ylabel="rows")
    return drawn


def curves(rows: Sequence[PlottedRow]) -> Figure | None:
    """The logged values of the last stage, the mean over a row's runs and their range; None where no step was logged.

    A panel per term and per diagnostic; the terms' gradients share a panel for each part that they train.
    """
    rows = [row for row in rows if row.runs[0].stages]  # without models that were only scored
    steps = {row: [_last_stage(run.path) for run in row.runs] for row in rows}
    every = [run for own in steps.values() for run in own]
    terms = [term for row in rows for term in row.runs[0].stages[-1].get("objective", ())]
    panels = list(_panels(every, terms))
    if not panels:
        return None
    height = ceil(len(panels) / COLUMNS)
    marks = {row: row.mark if len(rows) > len(PALETTE) else "" for row in rows}  # tell rows of one colour apart
    drawn = new_figure(11, 0.9 + 2.3 * height)
    drawn.subplots(height, COLUMNS, squeeze=False, sharex=True)
    for (title, names, teacher), axes in zip(panels, drawn.axes, strict=False):
        for row, own in steps.items():
            for name, line_style in names.items():
                _plot(axes, own, name, color=row.colour, ls=line_style, marker=marks[row])
        read = {row: own for row, own in steps.items() if any(teacher in line for run in own for line in run)}
        if teacher and len({_reading(row, teacher) for row in read}) == 1:
            _plot(axes, every, teacher, color=TEACHER, ls=DASHED)
        elif teacher:  # rows have teachers of their own, or read them within bounds of their own
            for row, own in read.items():
                _plot(axes, own, teacher, color=row.colour, ls=DASHED)
        _scale(axes)
        axes.set_title(title)
        if len(names) > 1:  # which line style is which term's
            keys = [Line2D([], [], color=GREY, ls=line_style) for line_style in names.values()]
            axes.legend(keys, [name.split("/")[1] for name in names], fontsize=7, loc="best")
    for axes in drawn.axes[: len(panels)][-COLUMNS:]:
        axes.set_xlabel("per cent of the stage")
        axes.tick_params(labelbottom=True)
    for axes in drawn.axes[len(panels) :]:
        axes.set_visible(False)
    keys = [Line2D([], [], color=row.colour, lw=2, marker=mark) for row, mark in marks.items()]
    keys.append(Line2D([], [], color=TEACHER, lw=2, ls=DASHED))
    labels = [*(row.title for row in rows), "dashed: teacher, on the same tokens"]
    drawn.legend(keys, labels, loc="outside lower center", ncols=min(4, len(labels)))
    names = dict.fromkeys(row.runs[0].stages[-1]["name"] for row in rows)
    heading = TEXT["title"].format(stage=", ".join(names), smoothed=SMOOTHED)
    drawn.suptitle(heading, fontsize=9, color=GREY)
    return drawn


def _reading(row: PlottedRow, name: str) -> frozenset[tuple[str, str]]:
    """What a teacher's value of this name depends on in a row: the teacher, and the bounds of the term that it is of."""
    term = f".objective.{name.split('/')[1]}.parameters." if "/" in name else None
    settings = row.runs[0].settings.items()
    return frozenset(
        (key, str(value)) for key, value in settings if key.startswith("teacher.") or (term and term in key)
    )


def _last_stage(run: Path) -> Steps:
    steps = [line for line in RunFolder(run).entries() if "step" in line and "event" not in line]
    return [line for line in steps if line["stage"] == steps[-1]["stage"]]


def _panels(runs: Sequence[Steps], terms: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    """The panels of texts.yaml that some run has values for; a path's k stands with the teacher's, unless that leads alone."""
    names = list(dict.fromkeys(name for steps in runs for line in steps for name in line))
    supervised = {f"loss/{term['name']}" for term in terms if term["loss"] == "cross_entropy"}
    patterns = ((pattern, title, name) for pattern, title in TEXT["panels"].items() for name in names)
    found = ((re.fullmatch(pattern, name), title, name) for pattern, title, name in patterns)
    for title, own in grouped((match.expand(title), name) for match, title, name in found if match).items():
        reference = "teacher_ce" if own[0] in supervised else TEACHERS_K.sub(r"\1/teacher/mean", own[0])
        led = {name for name in names if TEACHERS_K.sub(r"\1/teacher/mean", name) == reference}
        if own[0] != reference or led == {reference}:
            shown = title.replace("_", " ") if own[0].startswith(VALIDATION) else title
            teacher = reference if reference in names and reference != own[0] else None
            yield shown, dict(zip(own, cycle(STYLES), strict=False)), teacher


def _plot(axes: Axes, runs: Sequence[Steps], name: str, **looks: Any) -> None:
    """The mean and range of the runs, on one grid, up to the end of the shortest; smoothed where every step has a value."""
    curves = []
    for steps in runs:
        points = [(100 * line["step"] / line["steps"], line[name]) for line in steps if line.get(name) is not None]
        if not points:
            continue
        x, y = np.array(points, dtype=float).T
        weights = np.ones(max(1, round(SMOOTHED * len(steps))))
        if len(points) == len(steps):
            y = np.convolve(y, weights, "same") / np.convolve(np.ones_like(y), weights, "same")
        curves.append(np.interp(GRID, x, y, left=np.nan, right=np.nan))
    if curves:
        each = np.stack(curves)
        each = np.ma.masked_array(each, np.broadcast_to(~np.isfinite(each).all(0), each.shape))
        axes.plot(GRID, each.mean(0), lw=1.5, markevery=(4, 8), ms=4, **looks)
        if len(curves) > 1:
            axes.fill_between(GRID, each.min(0), each.max(0), color=looks["color"], alpha=0.12, lw=0)


def _scale(axes: Axes) -> None:
    """A logarithmic axis for what spans decades; plain numbers on both kinds."""
    if not axes.lines:
        return
    values = np.ma.concatenate([line.get_ydata() for line in axes.lines])
    if 0 < values.min() * DECADE < values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
