"""Messages and tables on the screen. Live progress is in progress.py.

Messages go to stderr and tables to stdout. Nothing is read as markup: `[student]` in a message is text.
"""

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from switchkd_cli.errors import discard_output, printable


def stdout() -> Console:
    """A rich console that prints text unchanged."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """Print lines of text to stderr, made safe: they may quote text that a terminal would obey as a command."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[str]) -> None:
    """Print a table; columns of `text` are left-aligned, those of numbers right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        justify: Literal["left", "right"] = "left" if name in text else "right"
        table.add_column(name, justify=justify, no_wrap=name == columns[0], overflow="fold")
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
