"""Draw all figures of some finished runs into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import matplotlib
from matplotlib.figure import Figure

from switchkd_cli.registry import LOSSES, signature
from switchkd_cli.report.figures import style
from switchkd_cli.report.figures.attention_maps import AttentionExample, attention
from switchkd_cli.report.figures.gain_and_cost import gain_and_cost
from switchkd_cli.report.figures.knee_positions import KneePosition, knees
from switchkd_cli.report.figures.radar import radar
from switchkd_cli.report.figures.training_curves import curves
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.row_runs import SFT
from switchkd_cli.runs.run_folder import RunFolder, shown

MOST_MAPS = 8  # models next to one another in the figure of attention

CAPTIONS = {
    "radar": "Scores, the mean over seeds: groups of benchmarks as in the paper's Figure 1, and every benchmark.",
    "cost": "The gain of each row over SFT on average, paired by seed, for the seconds and the memory of its last stage.",
    "curves": "Terms and diagnostics of the last stage: the mean over seeds, and the range from lowest to highest.",
    "knees": "The sorted logits of each path where one real answer begins, their knees and the k used (paper, Figure 2b).",
    "attention": "The attention of each model from the last word of a question, and its answer (paper, Figure 3).",
}
"""Caption of each figure, in the order in which they are drawn."""


@dataclass(frozen=True)
class DrawnFigure:
    """A figure's files, or why there is none."""

    name: str
    paths: tuple[Path, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"no figure of {self.name}: {self.reason}"
        return "\n".join(f"figure: {shown(path)}" for path in self.paths)


class Models(Protocol):
    """Data for figures that needs the saved models (engine/figure_data.py)."""

    def position(self, folder: RunFolder) -> KneePosition | None: ...
    def questions(self, folders: Sequence[RunFolder]) -> list[AttentionExample]: ...


def draw(
    runs: Sequence[ScoredRun],
    teacher: TeacherScores | None,
    models: Models,
    folder: Path,
    *,
    reference: str | None = SFT,
    forms: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Iterator[DrawnFigure]:
    """Draw radar, cost, curves, knees and attention, each as PNG and SVG; yield what was drawn, and what can't be.

    `forms`, by a figure's name, replaces PNG and SVG; `reference` is the row that gains are measured against.
    Of a row with several seeds, the first saved model is used.
    """
    rows = style.plotted_rows(runs)
    figures: dict[str, tuple[Callable[[], Figure | None], str]] = {
        "radar": (partial(radar, rows, teacher), "needs three benchmarks"),
        "cost": (
            partial(gain_and_cost, rows, teacher, reference),
            f"needs the row {reference or SFT} and another one, with an average",
        ),
        "curves": (partial(curves, rows), "no step was logged"),
        "knees": (partial(_knees, rows, models), "needs the saved model of a run with a term that uses knees"),
        "attention": (
            partial(_attention, rows, models),
            "needs saved models and questions about images in Latin letters",
        ),
    }
    with matplotlib.rc_context(style.SETTINGS):
        for name, (make, reason) in figures.items():
            made = make()
            if made is None:
                yield DrawnFigure(name, reason=reason)
            else:
                yield DrawnFigure(name, style.write(made, folder, name, forms.get(name, style.FORMS)))


def _knees(rows: Sequence[style.PlottedRow], models: Models) -> Figure | None:
    for row in rows:
        losses = {term["loss"] for stage in row.runs[0].stages[-1:] for term in stage.get("objective", ())}
        if any(signature("loss", name).knees for name in losses & LOSSES.keys()):
            folder = _saved(row)
            if folder and (position := models.position(folder)):
                return knees(position, row.colour)
    return None


def _attention(rows: Sequence[style.PlottedRow], models: Models) -> Figure | None:
    saved = [(row, folder) for row in rows if (folder := _saved(row))][:MOST_MAPS]
    examples = models.questions([folder for _, folder in saved]) if saved else []
    if not examples:
        return None
    return attention(examples, [row.title for row, _ in saved], [row.colour for row, _ in saved])


def _saved(row: style.PlottedRow) -> RunFolder | None:
    """The first run of the row whose model is still there."""
    folders = (RunFolder(run.path) for run in row.runs)
    return next((folder for folder in folders if folder.model.is_dir()), None)
