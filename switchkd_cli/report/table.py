"""The tables that end `distill`, `ablate` and `compare`: built, shown, written beside the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from switchkd_cli.report.ablation import Planned, ablation
from switchkd_cli.report.cells import Report
from switchkd_cli.report.comparison import Teacher, comparison, distillation
from switchkd_cli.report.render import show, write
from switchkd_cli.report.scored import read
from switchkd_cli.runs import RunFolder

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
    runs: Sequence[RunFolder], teacher: Teacher | None, *, console: Console | None = None
) -> Report:
    """Finished runs side by side, in the order given. Nothing is written: they may come from anywhere."""
    return _printed(comparison([read(run) for run in runs], teacher), console)


def _printed(report: Report, console: Console | None, path: Path | None = None) -> Report:
    show(report, console)
    if path is not None:
        write(report, path)
    return report
