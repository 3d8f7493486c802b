"""How each column was measured, here and in the paper: the protocol next to the scores."""

from __future__ import annotations

from collections.abc import Sequence

from switchkd_cli.benchmarks import BENCHMARKS, LMMS_EVAL
from switchkd_cli.report.document.model import Line, Table


def conditions(tasks: Sequence[str], world: str, split: str) -> Table:
    """A line for each benchmark; where the paper differs, its way stands in parentheses."""
    lines = []
    for row in (BENCHMARKS[task] for task in tasks):
        here = row.split if world == "hub" else f"{world}, {split}"
        ocr, paper_ocr = ("on" if flag else "off" for flag in (row.ocr, row.paper_ocr))
        cells = (
            here if here == row.paper_split else f"{here} (paper: {row.paper_split})",
            row.metric,
            row.scale,
            ocr if ocr == paper_ocr else f"{ocr} (paper: {paper_ocr})",
            f"{row.task}: {row.judge}" + (f" (paper: {row.paper_judge})" if row.paper_judge else ""),
        )
        lines.append(Line(row.column, cells))
    title = f"protocol: stock tasks of lmms-eval {LMMS_EVAL}, and the paper's where it differs"
    heads = ("protocol", "split", "metric", "scale", "OCR", "scored by")
    return Table(heads, tuple(lines), title, source="protocol")
