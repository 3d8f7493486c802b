"""How the last stage went: losses and diagnostics of every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from switchkd_cli.report.figures.style import GREY, PALETTE, TEACHER, Row, figure
from switchkd_cli.report.results.finished_run import logged
from switchkd_cli.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = np.linspace(0, 100, 101)  # per cent of the stage: rows of unlike lengths are drawn over one another
SMOOTHED = 0.04  # share of a stage that figures of every step are averaged over
PANELS = {
    "grad_norm": "gradient norm",
    "agreement/student": "student agrees with the teacher",
    "agreement/switch": "switch agrees with the teacher",
    "kl/student": "KL(teacher, student), nats",
    "switch_gap": "switch gap KL(teacher, switch), nats",
}
DASHED = (0, (4, 2))
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
DECADE = 10  # a positive figure that spans more is drawn on a logarithmic axis
COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One pair of axes: figures by name with the line style that each has, and the teacher's own beside them."""

    title: str
    figures: Mapping[str, Any]
    teacher: str | None = None


def curves(rows: Sequence[Row]) -> Figure | None:
    """The figures of the last stage, the mean over a row's runs and their range; None where no step was logged.

    A panel a term and a diagnostic; the terms' gradients share a panel for each part that they train.
    """
    rows = [row for row in rows if row.runs[0].stages]  # not of a model that was only scored
    read = {row: [_last_stage(logged(RunFolder(run.path).metrics)) for run in row.runs] for row in rows}
    every = [steps for own in read.values() for steps in own]
    panels = list(_panels(every, _terms(rows)))
    if not panels:
        return None
    height = ceil(len(panels) / COLUMNS)
    drawn = figure(11, 0.9 + 2.3 * height)
    for panel, axes in zip(
        panels, drawn.subplots(height, COLUMNS, squeeze=False, sharex=True).flat, strict=False
    ):
        lines = [
            (_each(own, name), row.colour, style, row.mark if len(rows) > len(PALETTE) else "")
            for row, own in read.items()
            for name, style in panel.figures.items()
        ]
        lines += [(_each(every, panel.teacher), TEACHER, DASHED, "")] if panel.teacher else []
        _scale(axes, [span for line in lines if (span := _line(axes, *line))])
        axes.set_title(panel.title)
        if len(panel.figures) > 1:
            _styles(axes, panel)
    _finish(drawn, rows, len(panels), height)
    return drawn


def _panels(
    runs: Sequence[Sequence[Mapping[str, Any]]], terms: Sequence[Mapping[str, Any]]
) -> Iterator[Panel]:
    """Terms in the objective's order, the diagnostics that some run has, the gradients of each part."""
    seen = dict.fromkeys(name for steps in runs for line in steps for name in line)
    supervised = {f"loss/{term['name']}" for term in terms if term["loss"] == "cross_entropy"}
    for name in seen:
        if name.startswith("loss/"):
            own = "teacher_ce" if name in supervised else None
            yield Panel(f"loss of {name.removeprefix('loss/')}, nats", {name: "-"}, own)
    for name, title in PANELS.items():
        if name in seen:
            yield Panel(title, {name: "-"})
    yield from _knees([name for name in seen if name.startswith("k/") and name.endswith("/mean")])
    gradients = [name for name in seen if name.startswith("grad/")]
    for part in dict.fromkeys(name.split("/")[2] for name in gradients):
        own = [name for name in gradients if name.endswith(f"/{part}")]
        yield Panel(f"gradients on {part}", dict(zip(own, cycle(STYLES), strict=False)))


def _knees(names: Sequence[str]) -> Iterator[Panel]:
    """`k/<term>/<path>/mean`: what leads beside the teacher, with the teacher's own; the teacher where it leads alone."""
    terms: dict[str, dict[str, str]] = {}
    for name in names:
        _, *term, path, _ = name.split("/")  # older runs name no term
        terms.setdefault("".join(term), {})[path] = name
    for term, paths in terms.items():
        teacher = paths.pop("teacher", None)
        of = f"{term}: " if term else ""
        for path, name in (paths or {"teacher": teacher}).items():
            yield Panel(f"{of}effective k of the {path}", {name: "-"}, teacher if paths else None)


def _styles(axes: Axes, panel: Panel) -> None:
    """Which line style is which term's."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=GREY, ls=style) for style in panel.figures.values()]
    axes.legend(marks, [name.split("/")[1] for name in panel.figures], fontsize=7, loc="best")


def _finish(drawn: Figure, rows: Sequence[Row], panels: int, height: int) -> None:
    from matplotlib.lines import Line2D

    for i, axes in enumerate(drawn.axes):
        if i >= panels:
            axes.set_visible(False)
        elif i >= panels - COLUMNS or i // COLUMNS == height - 1:
            axes.set_xlabel("per cent of the stage")
            axes.tick_params(labelbottom=True)
    marked = len(rows) > len(PALETTE)
    marks = [Line2D([], [], color=row.colour, lw=2, marker=row.mark if marked else "") for row in rows]
    marks.append(Line2D([], [], color=TEACHER, lw=2, ls=DASHED))
    names = [*(row.title for row in rows), "teacher, on the same tokens"]
    drawn.legend(marks, names, loc="outside lower center", ncols=min(4, len(names)))
    told = f"stage {rows[0].runs[0].stages[-1]['name']} · line: mean over runs · band: lowest to highest run"
    drawn.suptitle(
        f"{told} · figures of every step: running mean over {SMOOTHED:.0%} of the stage",
        fontsize=9,
        color=GREY,
    )


def _last_stage(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    steps = [line for line in lines if "step" in line]
    return [line for line in steps if line["stage"] == steps[-1]["stage"]] if steps else []


def _series(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where in the stage (per cent) and the figure there; smoothed where every step has it."""
    found = [(100 * line["step"] / line["steps"], line[name]) for line in steps if line.get(name) is not None]
    x, y = np.array(found, dtype=float).reshape(-1, 2).T
    width = max(1, round(SMOOTHED * len(steps)))
    if len(found) == len(steps) and width > 1:
        weights = np.ones(width)
        y = np.convolve(y, weights, "same") / np.convolve(np.ones_like(y), weights, "same")
    return x, y


def _each(runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[np.ndarray]:
    """The figure of each run that has it, on one grid."""
    found = [_series(steps, name) for steps in runs]
    return [np.interp(GRID, x, y, left=np.nan, right=np.nan) for x, y in found if len(x)]


def _line(
    axes: Axes, runs: Sequence[np.ndarray], colour: str, style: Any, mark: str
) -> tuple[float, float] | None:
    """Draws the runs' mean and range; the lowest and highest of the mean. Marks tell rows of one colour apart."""
    if not runs:
        return None
    each = np.ma.masked_invalid(np.stack(runs))
    mean = each.mean(0)
    axes.plot(GRID, mean, color=colour, lw=1.5, ls=style, marker=mark, markevery=(10, 20), ms=4)
    if len(runs) > 1:
        axes.fill_between(GRID, each.min(0), each.max(0), color=colour, alpha=0.12, lw=0)
    return float(mean.min()), float(mean.max())


def _scale(axes: Axes, spans: Sequence[tuple[float, float]]) -> None:
    """A logarithmic axis for what spans decades; plain numbers on both kinds."""
    lowest, highest = min(low for low, _ in spans), max(high for _, high in spans)
    if 0 < lowest * DECADE < highest:
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _terms(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    return [term for row in rows for term in row.runs[0].stages[-1].get("objective", ())]
