"""Print a document's tables and notes on a terminal, in a pipe or a text file."""

import io
import textwrap

import rich.table
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from switchkd_cli.report.document import WARNING, Document, Number, Table, are_words, words
from switchkd_cli.terminal.console import stdout

WIDTH = 100  # columns, where no terminal says how many there are
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
