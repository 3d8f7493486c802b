"""All pictures of some finished runs, into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from switchkd_cli.registry import LOSSES, signature
from switchkd_cli.report.figures import style
from switchkd_cli.report.figures.attention_maps import Question, attention
from switchkd_cli.report.figures.gain_and_cost import cost
from switchkd_cli.report.figures.knee_positions import Position, knees
from switchkd_cli.report.figures.radar import radar
from switchkd_cli.report.figures.training_curves import curves
from switchkd_cli.report.results.finished_run import Scored
from switchkd_cli.report.results.seeds import SFT
from switchkd_cli.runs.run_folder import RunFolder, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_MAPS = 8  # models beside one another in the picture of attention


CAPTIONS = {
    "radar": "Scores, the mean over seeds: groups of benchmarks as in the paper's Figure 1, and every benchmark.",
    "cost": "What each row adds to SFT on average, paired by seed, for the seconds and the memory of its last stage.",
    "curves": "Terms and diagnostics of the last stage: the mean over seeds, and the range from lowest to highest.",
    "knees": "The sorted logits of each path where one real answer begins, their knees and the k taken (paper, Figure 2b).",
    "attention": "Where each model looks for the last word of a question, and what it answers (paper, Figure 3).",
}
"""What each picture shows, in the order in which they are drawn."""


@dataclass(frozen=True)
class Drawn:
    """A picture's files, or why there is none."""

    name: str
    paths: tuple[Path, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"no picture of {self.name}: {self.reason}"
        return "\n".join(f"picture: {shown(path)}" for path in self.paths)


class Models(Protocol):
    """What asks the saved models themselves (engine/illustrate.py)."""

    def position(self, folder: RunFolder) -> Position | None: ...
    def questions(self, folders: Sequence[RunFolder]) -> list[Question]: ...


def draw(
    runs: Sequence[Scored],
    teacher: Mapping[str, Any] | None,
    models: Models,
    folder: Path,
    *,
    reference: str | None = SFT,
    forms: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Iterator[Drawn]:
    """Draws radar, cost, curves, knees and attention, each as PNG and SVG; gives what was drawn, and what can't be.

    `forms` by a picture's name, where it is wanted otherwise; `reference` is the row that gains are measured by.

    `teacher` is what `baselines.judged` returns. Of a row with several seeds, the first seed's model is asked.
    """
    import matplotlib

    rows = style.rows_of(runs)
    wanted: dict[str, tuple[Callable[[], Figure | None], str]] = {
        "radar": (partial(radar, rows, teacher), "needs three benchmarks"),
        "cost": (
            partial(cost, rows, teacher, reference),
            f"needs the row {reference or SFT} and one beside it, with an average",
        ),
        "curves": (partial(curves, rows), "no step was logged"),
        "knees": (
            partial(_knees, rows, models),
            "needs the saved model of a run with a term that seeks knees",
        ),
        "attention": (
            partial(_attention, rows, models),
            "needs saved models and pictured questions in Latin letters",
        ),
    }
    with matplotlib.rc_context(style.SETTINGS):
        for name, (make, reason) in wanted.items():
            made = make()
            if made is None:
                yield Drawn(name, reason=reason)
            else:
                yield Drawn(name, tuple(style.write(made, folder, name, forms.get(name, style.FORMS))))


def _knees(rows: Sequence[style.Row], models: Models) -> Figure | None:
    for row in rows:
        if (folder := _saved(row)) and _seeks_a_knee(row) and (found := models.position(folder)):
            return knees(found, row.colour)
    return None


def _attention(rows: Sequence[style.Row], models: Models) -> Figure | None:
    saved = {row: folder for row in rows if (folder := _saved(row))}
    seen = list(saved)[:MOST_MAPS]
    found = models.questions([saved[row] for row in seen]) if seen else []
    return attention(found, [row.title for row in seen], [row.colour for row in seen]) if found else None


def _saved(row: style.Row) -> RunFolder | None:
    """The first run of the row whose model is still there."""
    folders = (RunFolder(run.path) for run in row.runs)
    return next((folder for folder in folders if folder.model.is_dir()), None)


def _seeks_a_knee(row: style.Row) -> bool:
    losses = {term["loss"] for term in row.runs[0].stages[-1].get("objective", ())}
    return any(signature("loss", name).knees for name in losses & LOSSES.keys())
