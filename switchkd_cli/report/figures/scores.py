"""Figures of scores: the radar of the paper's Figure 1, and the gain against its cost."""

from collections.abc import Mapping, Sequence
from math import pi, sin
from operator import attrgetter
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.report.figures.style import DASHED, FAINT, GREY, TEACHER, PlottedRow, legend_below, new_figure
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.results.finished_run import TeacherScores, scores
from switchkd_cli.report.results.row_runs import SFT
from switchkd_cli.report.tables.columns import Columns

STEP = 20  # points from ring to ring

Web = tuple[Mapping[str, float], Mapping[str, Any]]
"""Scores, and how their line is plotted."""


def radar(rows: Sequence[PlottedRow], teacher: TeacherScores) -> Figure | None:
    """Groups of benchmarks on the left, every benchmark on the right; None with fewer than three benchmarks.

    Scores of the rows (means over their runs) and of the teacher. A benchmark on which the teacher does not clearly
    beat the baselines is grey, and in no group.
    """
    columns = Columns.of(rows[0].runs[0].scores, teacher)
    tasks = [task for task in columns.tasks if BENCHMARKS[task].in_points]  # others have scales of their own
    if len(tasks) < 3:
        return None
    webs: list[Web] = [
        (row.means(), {"label": row.title, "color": row.colour, "marker": row.mark, "lw": 1.8}) for row in rows
    ]
    if "teacher" in columns.teacher:
        looks = {"label": "teacher", "color": TEACHER, "marker": "", "ls": DASHED, "lw": 1.2}
        webs.append((scores(columns.teacher["teacher"]), looks))
    groups = grouped((BENCHMARKS[task].group, task) for task in columns.counted_tasks)
    sides = {"Groups of benchmarks (paper, Figure 1)": groups} if len(groups) > 2 else {}
    heads = {task: BENCHMARKS[task].column for task in tasks}
    sides["Every benchmark"] = {f"({h})" if t in columns.not_beaten else h: [t] for t, h in heads.items()}
    drawn = new_figure(10.5, 5.8, h_pad=0.12, w_pad=0.1)  # labels hang out of their axes
    for i, (title, spokes) in enumerate(sides.items(), 1):
        axes = drawn.add_subplot(1, len(sides), i, projection="polar")
        assert isinstance(axes, PolarAxes)
        _plot(axes, webs, spokes)
        axes.set_title(title, loc="center", pad=12)
    results = rows[0].runs[0].results
    counts = sorted({len(row.runs) for row in rows if row.is_run} or {1})
    runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = "one seed" if counts == [1] else f"means over {runs} seeds"
    title = f"{results['world']}, {results['split']} split · score 0..100 · {seeds}"
    legend_below(drawn, drawn.axes[0], title=title)
    return drawn


def _plot(axes: PolarAxes, webs: Sequence[Web], spokes: Mapping[str, Sequence[str]]) -> None:
    """`spokes`: the scores that each shows the mean of; those with a head in parentheses are grey."""
    angles = [2 * pi * i / len(spokes) for i in range(len(spokes))]
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    highest = 0.0
    for values, looks in webs:
        radii = [fmean(values[task] for task in tasks) for tasks in spokes.values()]
        axes.plot([*angles, angles[0]], [*radii, radii[0]], ms=4.5, **looks)
        highest = max(highest, *radii)
    rings = range(STEP, int(highest // STEP + 1) * STEP + 1, STEP)
    axes.set_ylim(0, max(highest * 1.03, rings[-1]))
    axes.spines["polar"].set_color(FAINT)
    axes.set_rgrids(list(rings), labels=list(map(str, rings)), angle=180 / len(spokes), color=GREY, fontsize=7)
    axes.set_xticks(angles, list(spokes))
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        label.set_color(GREY if label.get_text().startswith("(") else "black")
        # labels grow away from the web
        label.set_horizontalalignment("center" if abs(sin(angle)) < 0.1 else "left" if sin(angle) > 0 else "right")
    axes.tick_params(axis="x", pad=2)


def gain_and_cost(rows: Sequence[PlottedRow], teacher: TeacherScores, measured_by: str | None = SFT) -> Figure | None:
    """Each row's gain over SFT, paired by seed, against the last stage's seconds and memory; None without SFT."""
    reference = next((row for row in rows if row.row == measured_by), None)
    if reference is None or len(rows) < 2:
        return None
    columns = Columns.of(reference.runs[0].scores, teacher)
    if not columns.counted_tasks:
        return None
    gains = {row: row.minus(reference, columns.run_average) for row in rows}
    drawn = new_figure(10.5, 4.6)
    costs = {"seconds of the last stage": attrgetter("seconds"), "peak memory, GiB": attrgetter("gib")}
    for axes, (label, measured) in zip(drawn.subplots(1, 2, sharey=True), costs.items(), strict=True):
        for row in rows:
            gain, cost = gains[row], row.mean(measured)
            if gain and cost:
                bar = gain.interval if row is not reference else None
                looks = {"color": row.colour, "marker": row.mark, "ms": 8, "lw": 1.3, "ls": ""}
                axes.errorbar(cost.value, gain.value, yerr=bar, capsize=3, label=row.title, **looks)
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set(xlim=(0, axes.get_xlim()[1] * 1.04), xlabel=label)
    count = len(columns.counted_tasks)
    drawn.axes[0].set_ylabel(f"points over {reference.title}, average of {count} benchmarks")
    legend_below(drawn, drawn.axes[0], most=6)
    counts = sorted({gain.seeds or 1 for row, gain in gains.items() if gain and row is not reference})
    runs = " to ".join(map(str, dict.fromkeys(counts[:1] + counts[-1:])))
    bars = f"means over {runs} paired seeds, bars: 95 % t interval of the paired differences, none of one seed"
    drawn.suptitle(bars if counts != [1] else "one seed: no interval", fontsize=9, color=GREY)
    return drawn
