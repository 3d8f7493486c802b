"""Write a document as one HTML page that needs no other file: its style and its figures are in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from switchkd_cli.benchmarks import ANSWER_KINDS
from switchkd_cli.report.document.cells import Cell, Interval, Number, Verdict, words
from switchkd_cli.report.document.model import AVERAGE_HEAD, HEADINGS, Document, FigureFile, Line, Table
from switchkd_cli.report.formats.whiskers import CLASSES, whiskers

TEMPLATES = Path(__file__).with_name("templates")
HAIR = "\u200a"  # a space narrower than a thin one
LONG = 24  # characters; a cell of more words gets room
FIGURE = re.compile(r"[\d.,]+( of \d+)?")  # text that aligns as a number does
IDS = re.compile(r'(\bid="|url\(#|href="#)')


def to_html(document: Document, folder: Path) -> str:
    """The whole document; figures are read from the folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {
        "lines": _lines,
        "cell": _cell,
        "looks": _looks,
        "heads": _heads,
        "whiskers": lambda table: {name: Markup(svg) for name, svg in whiskers(table).items()},
        "drawn": lambda figure: _drawn(figure, folder / figure.path),
    }
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.jinja").render(document=document, style=style)


def _cell(cell: Cell) -> str:
    """A cell's content, escaped."""
    if not isinstance(cell, Number):
        text = words(cell)
        return escape(text.replace("-", "−") if isinstance(cell, Interval) else text)
    value = cell.points.replace("-", "−")
    star = "<sup>*</sup>" if cell.beyond else ""
    small = filter(None, (cell.spread.replace(" ", HAIR), cell.mde))
    text = f"{value}{star}" if cell.counted else f"({value}){star}"
    return Markup(text + "".join(f" <small>{part}</small>" for part in small))


def _looks(cell: Cell, head: str) -> str:
    """The classes of a cell under a head."""
    return " ".join(filter(None, (_kind(cell), _column(head))))


def _heads(table: Table, place: int) -> str | None:
    """The classes of a column's head, which aligns with its cells."""
    cells = [line.cells[place - 1] for line in table.lines] if place else []
    figures = any(_kind(cell).startswith("n") for cell in cells if cell is not None)
    return " ".join(filter(None, ("right" if figures else "", _column(table.columns[place])))) or None


def _kind(cell: Cell) -> str:
    if isinstance(cell, Number):
        return " ".join(filter(None, ("n", CLASSES[cell.side], "" if cell.counted else "out")))
    if isinstance(cell, Verdict):
        return f"verdict {cell.tone}"
    if isinstance(cell, str) and not FIGURE.fullmatch(cell):
        return "words long" if len(cell) > LONG else "words"
    return "n"


def _column(head: str) -> str:
    """The class of a column that is set apart from those before it."""
    return "total" if head == AVERAGE_HEAD else "opens" if head in ANSWER_KINDS.values() else ""


def _lines(table: Table) -> Iterator[tuple[str, list[Line]]]:
    """Groups of lines under their headings; the paper's table has a label instead."""
    for kind, lines in groupby(table.lines, key=lambda line: line.kind):
        yield ("" if table.source == "paper" else HEADINGS.get(kind, "")), list(lines)


def _drawn(figure: FigureFile, path: Path) -> str:
    """An SVG's element, scaled to the page, with ids that no other figure has; any other image as data."""
    title = escape(figure.title)
    if path.suffix != ".svg":
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        return Markup(f'<img src="data:image/{path.suffix[1:]};base64,{data}" alt="{title}">')
    own = "-".join((*figure.path.parent.parts[1:], path.stem))
    svg = path.read_text(encoding="utf-8")
    svg = IDS.sub(lambda found: f"{found[0]}{own}-", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-label="{title}">{body}')
