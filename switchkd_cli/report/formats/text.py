"""A report on a terminal, in a pipe or a text file, as Markdown, as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from switchkd_cli.files.atomic import write_text
from switchkd_cli.report.tables.cells import HEADINGS, Number, Report, Table, are_words, full_name, words
from switchkd_cli.report.tables.footnotes import WARNING

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console

WIDTH = 100  # columns, where no terminal says how many there are
WORDS = 22  # characters; a column with longer words may wrap
BAR = r"\|"  # a bar inside a Markdown cell
STYLES = {"gain": "bold", "baseline": "dim", "paper": "dim"}


def show(report: Report, console: Console | None = None) -> None:
    """Print the report. A table too wide for the screen is never cut: its lines run on."""
    from rich.text import Text

    from switchkd_cli.terminal.console import stdout

    console = console or stdout()
    console.width = _width(console, [_drawn(table, narrow=True) for table in report.tables])
    drawn = [_fitting(table, console) for table in report.tables]
    console.print()
    for line in _wrapped(report.title, console.width):
        console.print(Text(line, "bold"), soft_wrap=True)
    for table, drawing in zip(report.tables, drawn, strict=True):
        console.print()
        for line in _wrapped(table.title, console.width):
            console.print(Text(line), soft_wrap=True)
        console.print(drawing)
    console.print()
    for note in report.notes:
        for line in _wrapped(note, console.width):
            console.print(Text(line, "bold" if note.startswith(WARNING) else "dim"), soft_wrap=True)


def to_text(report: Report) -> str:
    """What a pipe gets."""
    import io

    from rich.console import Console

    output = io.StringIO()
    show(report, Console(file=output, markup=False, emoji=False, highlight=False, force_terminal=False))
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().strip("\n").splitlines())


def to_markdown(report: Report) -> str:
    """The same title, tables and notes as GitHub's Markdown."""
    parts = [f"**{report.title}**"]
    for table in report.tables:
        rows = [table.columns, ("---", *["---:"] * (len(table.columns) - 1))]
        rows += [(full_name(line), *map(words, line.cells)) for line in table.lines]
        parts += [table.title] if table.title else []
        parts.append(piped(rows))
    parts.append("\n".join(f"- {note}" for note in report.notes))
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    return json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"


def write(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    write_text(path, to_json(report))


def _drawn(table: Table, narrow: bool = False) -> rich.table.Table:
    import rich.table
    from rich import box
    from rich.text import Text

    drawn = rich.table.Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    drawn.add_column(Text(table.columns[0]), overflow="fold")
    columns = list(zip(*(line.cells for line in table.lines), strict=True)) or [()] * len(table.columns[1:])
    widest = [max((len(words(cell)) for cell in cells), default=0) for cells in columns]
    wrapped = [any(are_words(cell, WORDS) for cell in cells) for cells in columns]
    for head, needed, wraps in zip(table.columns[1:], widest, wrapped, strict=True):
        if wraps:
            drawn.add_column(Text(head), overflow="fold")
        elif any(wrapped):  # beside words, which give way
            drawn.add_column(Text(head), justify="right", width=max(needed, len(head)))
        else:  # heads may wrap between words, numbers may not
            shown = "\n".join(_wrapped(head, needed, "")) if narrow else head
            drawn.add_column(Text(shown), justify="right", no_wrap=True)
    for kind, lines in groupby(table.lines, key=lambda line: line.kind):
        style = STYLES.get(kind, "")
        if kind in HEADINGS:
            drawn.add_row(Text(HEADINGS[kind], style))
        for line in lines:
            indent = "  " if kind in HEADINGS else ""
            cells = [Text(words(cell), style if _counted(cell) else "dim") for cell in line.cells]
            drawn.add_row(Text(indent + line.name, style), *cells)
    return drawn


def _fitting(table: Table, console: Console) -> rich.table.Table:
    """With its heads on one line if there is room."""
    from rich.measure import Measurement

    drawn = _drawn(table)
    ample = console.options.update(width=10_000)
    fits = Measurement.get(console, ample, drawn).maximum <= console.width
    return drawn if fits else _drawn(table, narrow=True)


def _width(console: Console, tables: list[rich.table.Table]) -> int:
    """As wide as the terminal, or 100 columns in a pipe, or wider when numbers need it."""
    from rich.measure import Measurement

    ample = console.options.update(width=10_000)
    needed = max((Measurement.get(console, ample, table).minimum for table in tables), default=0)
    return max(console.width if console.is_terminal else WIDTH, needed)


def _wrapped(text: str, width: int, indent: str = "  ") -> Iterator[str]:
    """Lines that break no word, so that a path stays whole."""
    yield from textwrap.wrap(
        text, max(width, 1), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _counted(cell: object) -> bool:
    return not isinstance(cell, Number) or cell.counted


def piped(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table's lines."""
    return "\n".join(f"| {' | '.join(text.replace('|', BAR) for text in row)} |" for row in rows)
