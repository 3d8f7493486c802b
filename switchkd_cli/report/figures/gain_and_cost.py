"""Gain against cost: points over SFT for seconds and for GiB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from switchkd_cli.report.figures.style import GREY, Row, figure
from switchkd_cli.report.results.seeds import SFT
from switchkd_cli.report.stats.intervals import paired
from switchkd_cli.report.tables.columns import Columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cost(
    rows: Sequence[Row], teacher: Mapping[str, Any] | None, measured_by: str | None = SFT
) -> Figure | None:
    """Each row's gain over SFT, paired by seed, against the last stage's seconds and memory; None without SFT."""
    reference = next((row for row in rows if row.name == measured_by), None)
    if reference is None or len(rows) < 2:
        return None
    columns = Columns.of(reference.runs[0].scores, teacher)
    averages = {row: {run.seed: columns.average(run.scores) for run in row.runs} for row in rows}
    if any(None in own.values() for own in averages.values()):
        return None
    drawn = figure(10.5, 4.6)
    left, right = drawn.subplots(1, 2, sharey=True)
    for row in rows:
        gain = paired(averages[row], averages[reference])
        if gain is None:
            continue
        seconds = [run.seconds for run in row.runs if run.seconds is not None]
        memory = [run.gib for run in row.runs if run.gib is not None]
        for axes, values in ((left, seconds), (right, memory)):
            if values:
                _point(axes, row, fmean(values), gain.mean, gain.interval if row is not reference else None)
    left.set_xlabel("seconds of the last stage")
    right.set_xlabel("peak memory, GiB")
    left.set_ylabel(
        f"points over {reference.title}, average of {len(columns.tasks) - len(columns.not_beaten)} benchmarks"
    )
    for axes in (left, right):
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.04)
    handles, labels = left.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    seeds = len(reference.runs)
    told = (
        f"mean over {seeds} seeds, bars: 95 % t interval of the paired differences"
        if seeds > 1
        else "one seed: no interval"
    )
    drawn.suptitle(told, fontsize=9, color=GREY)
    return drawn


def _point(axes: Axes, row: Row, x: float, y: float, interval: float | None) -> None:
    axes.errorbar(
        x,
        y,
        yerr=interval,
        color=row.colour,
        marker=row.mark,
        ms=8,
        lw=1.3,
        capsize=3,
        ls="",
        label=row.title,
    )
