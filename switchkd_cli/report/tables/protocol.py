"""What each column was measured under, here and in the paper: the protocol beside the scores."""

from __future__ import annotations

from collections.abc import Sequence

from switchkd_cli.benchmarks import BENCHMARKS, LMMS_EVAL, Benchmark
from switchkd_cli.report.tables.cells import Line, Table

HEADS = ("protocol", "split", "metric", "scale", "OCR", "scored by")


def conditions(tasks: Sequence[str], world: str, split: str) -> Table:
    """A line for each benchmark; what the paper did otherwise stands in parentheses."""
    lines = tuple(Line(BENCHMARKS[task].column, _cells(BENCHMARKS[task], world, split)) for task in tasks)
    return Table(
        HEADS, lines, f"protocol: stock tasks of lmms-eval {LMMS_EVAL}, and the paper's where it differs"
    )


def _cells(row: Benchmark, world: str, split: str) -> tuple[str, ...]:
    here = row.split if world == "hub" else f"{world}, {split}"
    ocr = "on" if row.ocr else "off"
    return (
        here if here == row.paper_split else f"{here} (paper: {row.paper_split})",
        row.metric,
        row.scale,
        ocr if row.ocr == row.paper_ocr else f"{ocr} (paper: {'on' if row.paper_ocr else 'off'})",
        f"{row.task}: {row.judge}" + (f" (paper: {row.paper_judge})" if row.paper_judge else ""),
    )
