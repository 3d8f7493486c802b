"""The tables that end `distill`, `ablate` and `compare`: built, shown, and written under the runs' root."""

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


def print_distillation(
    root: Path, runs: Sequence[RunFolder], teacher: Teacher | None, *, console: Console | None = None
) -> Report:
    """The first run, its controls after it, and the gain. Writes `root`/<recipe>/table.json."""
    scored = [read(run) for run in runs]
    return _printed(distillation(scored, teacher), root / scored[0].recipe / "table.json", console)


def print_ablation(
    root: Path,
    runs: Sequence[RunFolder],
    teacher: Teacher | None,
    *,
    planned: Sequence[Planned] = (),
    controls: Sequence[str] = (),
    console: Console | None = None,
) -> Report:
    """One recipe's rows over seeds, see `ablation`. Writes `root`/<recipe>/ablation.json."""
    scored = [read(run) for run in runs]
    report = ablation(scored, teacher, planned=planned, controls=controls)
    return _printed(report, root / scored[0].recipe / "ablation.json", console)


def print_comparison(
    root: Path, runs: Sequence[RunFolder], teacher: Teacher | None, *, console: Console | None = None
) -> Report:
    """Finished runs side by side, in the order given. Writes `root`/comparison.json."""
    return _printed(comparison([read(run) for run in runs], teacher), root / "comparison.json", console)


def _printed(report: Report, path: Path, console: Console | None) -> Report:
    show(report, console)
    write(report, path)
    return report
