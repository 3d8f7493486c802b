"""Print the tables that end `distill`, `ablate` and `compare`, and write them next to the results."""

import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from switchkd_cli.files.atomic import write_text
from switchkd_cli.recipe.run import Run
from switchkd_cli.report.document import Document
from switchkd_cli.report.formats.export import FORMATS, show, to_json
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores, read
from switchkd_cli.report.tables.comparison import ablation, comparison, distillation
from switchkd_cli.runs.run_folder import RunFolder

NAME = "table.json"


def print_distillation(runs: Sequence[RunFolder], teacher: TeacherScores) -> None:
    """The first run, its controls, and its gain over each. Writes table.json into the first run's folder."""
    _print(distillation([read(run) for run in runs], teacher), runs[0].path)


def print_ablation(
    runs: Sequence[RunFolder], teacher: TeacherScores, *, planned: Sequence[Run], controls: Sequence[str]
) -> None:
    """One recipe's rows over seeds, see `ablation`. Writes table.json into the recipe's folder."""
    document = ablation([read(run) for run in runs], teacher, planned=planned, controls=controls)
    _print(document, runs[0].path.parents[1])


def _print(document: Document, folder: Path) -> None:
    write_text(folder / NAME, to_json(document))
    show(document)


def print_comparison(
    runs: Sequence[ScoredRun], teacher: TeacherScores, form: str | None = None, file: Path | None = None, **how: Any
) -> None:
    """Finished runs next to each other and the paper: printed, or in one of `FORMATS`. `how`: see `comparison`.

    Written to `file` if one is given. Nothing is written into the runs' folders: they may come from anywhere.
    """
    document = comparison(runs, teacher, **how)
    if form is None:
        show(document)
    elif file is not None:
        write_text(file, FORMATS[form](document))
    else:
        if form != "text" and isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # read by a program, as the file would be
        print(FORMATS[form](document), end="")
