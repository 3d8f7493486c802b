"""The radar of the paper's Figure 1: groups of benchmarks on the left, every benchmark on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi, sin
from statistics import fmean
from typing import TYPE_CHECKING, Any

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.report.figures.style import FAINT, GREY, TEACHER, Row, figure
from switchkd_cli.report.results.finished_run import scores
from switchkd_cli.report.tables.columns import Columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = {
    "Perception": ("mme", "mmbench_en_dev", "mmbench_cn_dev"),
    "Cognition": ("vqav2_val", "gqa", "scienceqa_img", "mmmu_val"),
    "TextVQA": ("textvqa_val",),
    "VizWiz": ("vizwiz_vqa_val",),
    "POPE": ("pope",),
}
"""The paper's Figure 1: means of groups of its columns."""
STEP = 20  # points from ring to ring


def radar(rows: Sequence[Row], teacher: Mapping[str, Any] | None) -> Figure | None:
    """Scores of the rows (means over their runs) and the teacher; None with fewer than three benchmarks.

    A benchmark on which the teacher does not clearly beat the baselines is greyed, and in no group.
    """
    columns = Columns.of(rows[0].runs[0].scores, teacher)
    if len(columns.tasks) < 3:
        return None
    lines = [(row.title, row.colour, row.mark, _means(row)) for row in rows]
    if teacher and "teacher" in teacher:
        lines.append(("teacher", TEACHER, "", scores(teacher["teacher"])))
    groups = _groups(columns)
    grouped = [
        (title, colour, mark, {name: fmean(values[t] for t in tasks) for name, tasks in groups.items()})
        for title, colour, mark, values in lines
    ]
    drawn = figure(10.5, 5.8)
    sides = (
        (grouped, groups, "Groups of benchmarks (paper, Figure 1)"),
        (lines, columns.tasks, "Every benchmark"),
    )
    shown = [side for side in sides if len(side[1]) > 2]
    for i, (each, spokes, title) in enumerate(shown):
        axes = drawn.add_subplot(1, len(shown), i + 1, projection="polar")
        _web(axes, each, list(spokes), columns)
        axes.set_title(title, loc="center", pad=12)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), title=_told(rows))
    drawn.get_layout_engine().set(h_pad=0.12, w_pad=0.1)  # labels hang out of their axes
    return drawn


def _groups(columns: Columns) -> dict[str, list[str]]:
    counted = [task for task in columns.tasks if task not in columns.not_beaten]
    found = {name: [task for task in tasks if task in counted] for name, tasks in GROUPS.items()}
    return {name: tasks for name, tasks in found.items() if tasks}


def _means(row: Row) -> dict[str, float]:
    return {task: fmean(run.scores[task] for run in row.runs) for task in row.runs[0].scores}


def _web(axes: Axes, lines: Sequence[tuple], spokes: Sequence[str], columns: Columns) -> None:
    angles = [2 * pi * i / len(spokes) for i in range(len(spokes))]
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    for title, colour, mark, values in lines:
        radii = [values[spoke] for spoke in spokes]
        dashed = {"ls": (0, (4, 2)), "lw": 1.2} if title == "teacher" else {"lw": 1.8}
        axes.plot(
            [*angles, angles[0]], [*radii, radii[0]], color=colour, marker=mark, ms=4.5, label=title, **dashed
        )
    highest = max(values[spoke] for *_, values in lines for spoke in spokes)
    rings = range(STEP, int(highest // STEP + 1) * STEP + 1, STEP)
    axes.set_ylim(0, max(highest * 1.03, rings[-1]))
    axes.spines["polar"].set_color(FAINT)
    axes.set_rgrids(
        list(rings), labels=[str(ring) for ring in rings], angle=180 / len(spokes), color=GREY, fontsize=7
    )
    axes.set_xticks(angles, [_label(spoke, columns) for spoke in spokes])
    for label, spoke, angle in zip(axes.get_xticklabels(), spokes, angles, strict=True):
        label.set_color(GREY if spoke in columns.not_beaten else "black")
        # labels grow away from the web
        label.set_horizontalalignment(
            "center" if abs(sin(angle)) < 0.1 else "left" if sin(angle) > 0 else "right"
        )
    axes.tick_params(axis="x", pad=2)


def _label(spoke: str, columns: Columns) -> str:
    if spoke not in BENCHMARKS:
        return spoke
    head = BENCHMARKS[spoke].column
    return f"({head})" if spoke in columns.not_beaten else head


def _told(rows: Sequence[Row]) -> str:
    results = rows[0].runs[0].results
    counts = sorted({len(row.runs) for row in rows if row.runs[0].is_run} or {1})
    runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = "one seed" if counts == [1] else f"means over {runs} seeds"
    return f"{results['world']}, {results['split']} split · score 0..100 · {seeds}"
