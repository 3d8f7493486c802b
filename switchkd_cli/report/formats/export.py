"""Write a document's tables and notes as text, Markdown, LaTeX, CSV or JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.report.document import Cell, Document, Interval, Number, Probability
from switchkd_cli.report.formats.latex import to_latex
from switchkd_cli.report.formats.markdown import to_markdown
from switchkd_cli.report.formats.text import to_text

NUMBERS = ("value", "interval", "low", "high", "seeds", "counted", "detectable")
"""Columns of the CSV next to a cell's text: a score or p-value, half of its own interval over N seeds, an
interval's ends, whether it is in the average, a difference's minimum detectable effect."""


def to_csv(document: Document) -> str:
    """A line for each cell, so that tables of different columns make one: table, line, column, text, numbers.

    The notes are lines of a table `notes`.
    """
    import pandas  # takes half a second

    cells = [
        {"table": table.title or document.title, "kind": line.kind, "line": line.name, "column": column}
        | {"text": "" if cell is None else str(cell), **_numbers(cell)}
        for table in document.tables
        for line in table.lines
        for column, cell in zip(table.columns[1:], line.cells, strict=True)
    ]
    notes = [{"table": "notes", "text": note} for note in document.notes]
    columns = ["table", "kind", "line", "column", "text", *NUMBERS]
    return pandas.DataFrame([*cells, *notes], columns=columns, dtype=object).to_csv(index=False)


def _numbers(cell: Cell) -> dict[str, object]:
    """The numbers behind a cell, unrounded."""
    if isinstance(cell, Number | Interval | Probability):
        return {k: value for k, value in asdict(cell).items() if k in NUMBERS and value is not None}
    return {"value": cell} if isinstance(cell, int) else {}


def to_json(document: Document) -> str:
    tables = [
        {"columns": table.columns, "lines": [asdict(line) for line in table.lines], "title": table.title}
        for table in document.tables
    ]
    content = {"title": document.title, "tables": tables, "notes": document.notes}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"text": to_text, "markdown": to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
SUFFIXES = {".txt": "text", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}


def chosen_format(name: str | None, file: Path | None) -> str | None:
    """The format by its name, else by the file's suffix; None for the screen.

    Raises UserError for an unknown name or suffix, and for a file that can't be written.
    """
    problems = []
    if name is not None and name not in FORMATS:
        problems.append(f"--format: unknown, got {name!r}{did_you_mean(name, FORMATS)}")
    if file is not None:
        if name is None and file.suffix not in SUFFIXES:
            problems.append(f"--out-file: which format? {file} ends in none of {' '.join(SUFFIXES)}")
        problems += unwritable("--out-file", file)
    if problems:
        raise UserError(problems, hint=f"--format {'|'.join(FORMATS)}")
    return name or (SUFFIXES[file.suffix] if file is not None else None)


def unwritable(option: str, file: Path) -> Iterator[str]:
    """Why no file can be written there."""
    if not file.absolute().parent.is_dir():
        yield f"{option}: {file.parent} is no folder"
    if file.is_dir():
        yield f"{option}: {file} is a folder"
