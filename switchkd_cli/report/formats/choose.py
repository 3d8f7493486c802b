"""One report in every form that can be asked for: text, Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.report.formats.latex import to_latex
from switchkd_cli.report.formats.text import to_json, to_markdown, to_text
from switchkd_cli.report.tables.cells import Cell, Interval, Number, Probability, Report, Table, words

CELLS = ("value", "interval", "low", "high", "seeds", "counted", "detectable")
"""What a CSV line says of a cell beside its text: a score or p-value, half of its own interval over so many
seeds, an interval's ends, whether it is in the average, a difference's minimum detectable effect."""


def to_csv(report: Report) -> str:
    """A line for each cell, so that tables of different columns make one: table, line, column, text, numbers.

    The notes are lines of a table `notes`.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, ("table", "kind", "line", "column", "text", *CELLS), lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        writer.writerows(_csv_lines(table, table.title or report.title))
    for note in report.notes:
        writer.writerow({"table": "notes", "text": note})
    return out.getvalue()


FORMATS: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {"text": to_text, "markdown": to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
)
SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".txt": "text", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
)


def chosen(name: str | None, file: Path | None) -> str | None:
    """The form that is asked for: the one named, else the file's by its suffix; None for the screen.

    Raises UserError for a name or a suffix that is none of ours, and for a file that can't be written.
    """
    problems = []
    if name is not None and name not in FORMATS:
        problems.append(f"--format: unknown, got {name!r}{did_you_mean(name, FORMATS)}")
    if file is not None and name is None and file.suffix not in SUFFIXES:
        problems.append(f"--out-file: which format? {file} ends in none of {' '.join(SUFFIXES)}")
    if file is not None and not file.absolute().parent.is_dir():
        problems.append(f"--out-file: {file.parent} is no folder")
    if file is not None and file.is_dir():
        problems.append(f"--out-file: {file} is a folder")
    if problems:
        raise UserError(problems, hint=f"--format {'|'.join(FORMATS)}")
    return name or (SUFFIXES[file.suffix] if file is not None else None)


def _csv_lines(table: Table, title: str) -> Iterator[dict[str, object]]:
    for line in table.lines:
        for column, cell in zip(table.columns[1:], line.cells, strict=True):
            own = {"table": title, "kind": line.kind, "line": line.name, "column": column}
            yield own | {"text": "" if cell is None else words(cell)} | _numbers(cell)


def _numbers(cell: Cell) -> dict[str, object]:
    """The numbers behind a cell, unrounded."""
    if isinstance(cell, Number | Interval | Probability):
        known = asdict(cell)
        return {name: known[name] for name in CELLS if known.get(name) is not None}
    return {"value": cell} if isinstance(cell, int) else {}
