"""Gain against cost: points over SFT for seconds and for GiB."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from switchkd_cli.report.figures.style import GREY, PlottedRow, legend_below, new_figure
from switchkd_cli.report.results.finished_run import TeacherScores
from switchkd_cli.report.results.row_runs import SFT
from switchkd_cli.report.tables.columns import Columns


def gain_and_cost(
    rows: Sequence[PlottedRow], teacher: TeacherScores | None, measured_by: str | None = SFT
) -> Figure | None:
    """Each row's gain over SFT, paired by seed, against the last stage's seconds and memory; None without SFT."""
    reference = next((row for row in rows if row.row == measured_by), None)
    if reference is None or len(rows) < 2:
        return None
    columns = Columns.of(reference.runs[0].scores, teacher)
    if not columns.counted_tasks:
        return None
    drawn = new_figure(10.5, 4.6)
    left, right = drawn.subplots(1, 2, sharey=True)
    for row in rows:
        gain = row.minus(reference, columns.run_average)
        for axes, cost in ((left, row.mean(lambda run: run.seconds)), (right, row.mean(lambda run: run.gib))):
            if gain and cost:
                bar = gain.interval if row is not reference else None
                looks = {"color": row.colour, "marker": row.mark, "ms": 8, "lw": 1.3, "ls": ""}
                axes.errorbar(cost.value, gain.value, yerr=bar, capsize=3, label=row.title, **looks)
    left.set_xlabel("seconds of the last stage")
    right.set_xlabel("peak memory, GiB")
    left.set_ylabel(f"points over {reference.title}, average of {len(columns.counted_tasks)} benchmarks")
    for axes in (left, right):
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.04)
    legend_below(drawn, left, most=6)
    seeds = len(reference.runs)
    bars = f"mean over {seeds} seeds, bars: 95 % t interval of the paired differences"
    drawn.suptitle(bars if seeds > 1 else "one seed: no interval", fontsize=9, color=GREY)
    return drawn
