"""Write a document as one HTML page that needs no other file: its style and its figures are in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from switchkd_cli.benchmarks import ANSWER_KINDS
from switchkd_cli.report import document as model
from switchkd_cli.report.document import Cell, Document, FigureFile, Line, Number, Table, words
from switchkd_cli.report.formats.template import render

HAIR = "\u200a"  # a space narrower than a thin one
LONG = 24  # characters; a cell of more words gets room
FIGURE = re.compile(r"[\d.,]+( of \d+)?")  # text that aligns as a number does
IDS = re.compile(r'(\bid="|url\(#|href="#)')
WIDTH, HEIGHT, EDGE = 240, 22, 8  # of a whisker, in pixels
OVER = 12  # pixels by which the line of zero reaches into the lines above and below
CLASSES = {1: "up", -1: "down", 0: "unclear", None: ""}
"""Class of a clear or unclear difference, by `Number.side`."""


def to_html(document: Document, folder: Path) -> str:
    """The whole document; figures are read from the folder."""

    def drawn(figure: FigureFile) -> str:
        return _drawn(figure, folder / figure.path)

    own: dict[str, Any] = {
        "groups": _groups,
        "looks": _looks,
        "heads": _heads,
        "whiskers": whiskers,
        "cell": _cell,
        "drawn": drawn,
    }
    return render("report.html.jinja", document, own)


def _cell(cell: Cell) -> str:
    """A cell's content, escaped."""
    if not isinstance(cell, Number):
        text = words(cell)
        return escape(text.replace("-", "−") if isinstance(cell, model.Interval) else text)
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
    cells = table.cells(place - 1) if place else []
    figures = any(_kind(cell).startswith("n") for cell in cells if cell is not None)
    return " ".join(filter(None, ("right" if figures else "", _column(table.columns[place])))) or None


def _kind(cell: Cell) -> str:
    if isinstance(cell, Number):
        return " ".join(filter(None, ("n", CLASSES[cell.side], "" if cell.counted else "out")))
    if isinstance(cell, model.Verdict):
        return f"verdict {cell.tone}"
    if isinstance(cell, str) and not FIGURE.fullmatch(cell):
        return "words long" if len(cell) > LONG else "words"
    return "n"


def _column(head: str) -> str:
    """The class of a column that is set apart from those before it."""
    return "total" if head == model.AVERAGE_HEAD else "opens" if head in ANSWER_KINDS.values() else ""


def _groups(table: Table) -> Iterator[tuple[str, list[Line]]]:
    """Groups of lines under their headings; the paper's table has a label instead."""
    for kind, lines in groupby(table.lines, key=lambda line: line.kind):
        yield ("" if table.source == "paper" else model.HEADINGS.get(kind, "")), list(lines)


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


def whiskers(table: Table) -> dict[str, str]:
    """The table's plotted column as SVGs on one scale, by the line's name: a dot for a mean, a line for its interval."""
    if table.plotted not in table.columns:
        return {}
    cells = zip(table.lines, table.cells(table.columns.index(table.plotted) - 1), strict=True)
    numbers = {line.name: cell for line, cell in cells if isinstance(cell, Number)}
    low = min(0.0, *(of.low for of in numbers.values()), 0.0)
    high = max(0.0, *(of.high for of in numbers.values()), 0.0)
    if low == high:
        return {}
    scale = (WIDTH - 2 * EDGE) / (high - low)

    def at(points: float) -> str:
        return f"{EDGE + (points - low) * scale:.1f}"

    middle = HEIGHT / 2
    return {
        name: Markup(
            f'<svg class="whisker {CLASSES[of.side or 0]}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" aria-hidden="true">'
            f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="{-OVER}" y2="{HEIGHT + OVER}"/>'
            f'<line x1="{at(of.low)}" x2="{at(of.high)}" y1="{middle}" y2="{middle}"/>'
            f'<circle cx="{at(of.value)}" cy="{middle}" r="4.5"/></svg>'
        )
        for name, of in numbers.items()
    }
