"""Draw all figures of some finished runs into a folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from switchkd_cli.errors import shown
from switchkd_cli.registry import LOSSES, signature
from switchkd_cli.report.figures import style
from switchkd_cli.report.figures.saved_models import attention, knees
from switchkd_cli.report.figures.scores import gain_and_cost, radar
from switchkd_cli.report.figures.training_curves import curves, lengths
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.row_runs import SFT
from switchkd_cli.report.texts import TEXTS
from switchkd_cli.runs.run_folder import RunFolder

FIGURES = TEXTS["figure"]  # captions, and what a figure can't be drawn without, in the order in which they are drawn
MOST_MAPS = 8  # models next to one another in the figure of attention


class DrawnFigure(NamedTuple):
    """A figure's files, or why there is none."""

    name: str
    paths: tuple[Path, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"no figure of {self.name}: {self.reason}"
        return "\n".join(f"figure: {shown(path)}" for path in self.paths)


def draw(
    runs: Sequence[ScoredRun],
    teacher: TeacherScores,
    of_models: Callable[[], Any],
    folder: Path,
    *,
    reference: str | None = SFT,
    forms: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[DrawnFigure]:
    """Draw radar, cost, lengths, curves, knees and attention; yield what was drawn, and what can't be.

    `of_models` returns engine/figure_data.py, which reads saved models. `forms`, by a figure's name, replaces PNG and SVG;
    `reference` is the row that gains are measured against. Of a row with several seeds, the first saved model is used.
    """
    rows = style.plotted_rows(runs)
    figures: dict[str, Callable[[], Figure | None]] = {
        "radar": lambda: radar(rows, teacher),
        "cost": lambda: gain_and_cost(rows, teacher, reference),
        "lengths": lambda: lengths(rows),
        "curves": lambda: curves(rows),
        "knees": lambda: _knees(rows, of_models),
        "attention": lambda: _attention(rows, of_models),
    }
    with matplotlib.rc_context(fname=style.SETTINGS):
        for name, texts in FIGURES.items():
            if made := figures[name]():
                yield DrawnFigure(name, style.write(made, folder, name, (forms or {}).get(name, style.FORMS)))
            else:
                yield DrawnFigure(name, reason=texts["lacks"].format(reference=reference or SFT))


def _knees(rows: Sequence[style.PlottedRow], of_models: Callable[[], Any]) -> Figure | None:
    for row in rows:
        losses = {term["loss"] for stage in row.runs[0].stages[-1:] for term in stage.get("objective", ())}
        with_knees = any(signature("loss", name).knees for name in losses & LOSSES.keys())
        if with_knees and (folder := _saved(row)) and (position := of_models().knee_position(folder)):
            return knees(position, row.colour)
    return None


def _attention(rows: Sequence[style.PlottedRow], of_models: Callable[[], Any]) -> Figure | None:
    saved = [(row, folder) for row in rows if (folder := _saved(row))][:MOST_MAPS]
    examples = of_models().attention_examples([folder for _, folder in saved]) if saved else []
    return attention(examples, [(row.title, row.colour) for row, _ in saved]) if examples else None


def _saved(row: style.PlottedRow) -> RunFolder | None:
    """The first run of the row whose model is still there."""
    folders = (RunFolder(run.path) for run in row.runs)
    return next((folder for folder in folders if folder.model.is_dir()), None)
