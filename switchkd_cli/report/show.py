"""Show a command's document: its tables and notes on a terminal, or as text, Markdown, LaTeX, CSV or JSON."""

import io
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path

import rich.table
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.files.atomic import write_text
from switchkd_cli.report.document import WARNING, Cell, Document, Interval, Number, Probability, Table, are_words, words
from switchkd_cli.report.formats.markup import to_latex, to_markdown
from switchkd_cli.terminal.console import stdout

NAME = "table.json"
WIDTH = 100  # columns, where no terminal says how many there are
NUMBERS = ("value", "interval", "low", "high", "seeds", "counted", "detectable")
"""Columns of the CSV next to a cell's text: a score or p-value, half of its own interval over N seeds, an
interval's ends, whether it is in the average, a difference's minimum detectable effect."""
STYLES = {"gain": "bold", "baseline": "dim", "paper": "dim"}


def show(document: Document, console: Console | None = None) -> None:
    """Print the document. A table too wide for the screen is never cut: its lines run on."""
    console = console or stdout()
    ample = console.options.update(width=10_000)
    narrow = [_drawn(table, narrow=True) for table in document.tables]
    # as wide as the terminal, or 100 columns in a pipe, or wider where numbers need it
    needed = max((Measurement.get(console, ample, table).minimum for table in narrow), default=0)
    width = console.width = max(console.width if console.is_terminal else WIDTH, needed)

    def say(text: str, style: str = "") -> None:
        for line in _wrapped(text, width, "  "):
            console.print(Text(line, style), soft_wrap=True)

    console.print()
    say(document.title, "bold")
    for table, tight in zip(document.tables, narrow, strict=True):
        console.print()
        say(table.title)
        wide = _drawn(table)  # its heads on one line, if there is room
        fits = Measurement.get(console, ample, wide).maximum <= width
        console.print(wide if fits else tight)
    console.print()
    for note in document.notes:
        say(note, "bold" if note.startswith(WARNING) else "dim")


def to_text(document: Document) -> str:
    """The text that a pipe gets."""
    output = io.StringIO()
    show(document, Console(file=output, markup=False, emoji=False, highlight=False, force_terminal=False))
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().strip("\n").splitlines())


def _drawn(table: Table, narrow: bool = False) -> rich.table.Table:
    drawn = rich.table.Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    drawn.add_column(Text(table.columns[0]), overflow="fold")
    wrapped = [any(map(are_words, cells)) for cells in table.by_column]
    for head, cells, wraps in zip(table.columns[1:], table.by_column, wrapped, strict=True):
        needed = max((len(words(cell)) for cell in cells), default=0)
        if wraps:
            drawn.add_column(Text(head), overflow="fold")
        else:  # heads may wrap between words, numbers may not; next to words, which give way, heads need not
            lines = _wrapped(head, needed) if narrow and not any(wrapped) else [head]
            drawn.add_column(Text("\n".join(lines)), justify="right", no_wrap=True)
    for heading, group in table.groups:
        style = STYLES.get(group[0].kind, "")
        if heading:
            drawn.add_row(Text(heading, style))
        for line in group:
            faded = [isinstance(cell, Number) and not cell.counted for cell in line.cells]
            texts = [Text(words(c), "dim" if faint else style) for c, faint in zip(line.cells, faded, strict=True)]
            drawn.add_row(Text("  " * bool(heading) + line.name, style), *texts)
    return drawn


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines that break no word, so that a path stays in one piece."""
    return textwrap.wrap(text, max(width, 1), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


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


def publish(document: Document, folder: Path) -> None:
    """Print a document, and write it into a folder of runs as table.json."""
    write_text(folder / NAME, to_json(document))
    show(document)


def output(document: Document, form: str | None = None, file: Path | None = None) -> None:
    """Print a document, as on a terminal or in one of `FORMATS`; write it to `file` if one is given."""
    if form is None:
        show(document)
    elif file is not None:
        write_text(file, FORMATS[form](document))
    else:
        if form != "text" and isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # read by a program, as the file would be
        print(FORMATS[form](document), end="")
