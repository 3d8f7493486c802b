"""The tables that end `distill`, `ablate` and `compare`: built, shown, written beside the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from switchkd_cli.files.atomic import write_text
from switchkd_cli.report.formats.choose import FORMATS
from switchkd_cli.report.formats.text import show, write
from switchkd_cli.report.results.finished_run import Scored, read
from switchkd_cli.report.tables.ablation import Planned, ablation
from switchkd_cli.report.tables.cells import Report
from switchkd_cli.report.tables.comparison import Teacher, comparison, distillation
from switchkd_cli.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

NAME = "table.json"


def print_distillation(
    runs: Sequence[RunFolder], teacher: Teacher | None, *, console: Console | None = None
) -> Report:
    """The first run, its controls after it, and the gain. Writes table.json into the first run's folder."""
    return _printed(distillation([read(run) for run in runs], teacher), console, runs[0].path / NAME)


def print_ablation(
    runs: Sequence[RunFolder],
    teacher: Teacher | None,
    *,
    planned: Sequence[Planned] = (),
    controls: Sequence[str] = (),
    console: Console | None = None,
) -> Report:
    """One recipe's rows over seeds, see `ablation`. Writes table.json into the recipe's folder."""
    report = ablation([read(run) for run in runs], teacher, planned=planned, controls=controls)
    return _printed(report, console, runs[0].path.parents[1] / NAME)


def print_comparison(
    runs: Sequence[Scored],
    teacher: Teacher | None,
    *,
    controls: Sequence[str] = (),
    against: str | None = None,
    form: str | None = None,
    file: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Finished runs beside each other and the paper, see `comparison`, on the screen or in a form of `formats`.

    Written to `file` if one is given; nothing is written beside the runs: they may come from anywhere.
    """
    report = comparison(runs, teacher, controls=controls, against=against)
    if form is None:
        return _printed(report, console)
    text = FORMATS[form](report)
    if file is None:
        if form != "text" and isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # read by a program, as the file would be
        print(text, end="")
    else:
        write_text(file, text)
    return report


def _printed(report: Report, console: Console | None, path: Path | None = None) -> Report:
    if path is not None:
        write(report, path)
    show(report, console)
    return report
