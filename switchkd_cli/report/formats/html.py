"""Write a document as one HTML page that needs no other file: its style and its figures are in it."""

import base64
import re
from pathlib import Path

from markupsafe import Markup, escape

from switchkd_cli.benchmarks import ANSWER_KINDS
from switchkd_cli.report.document import AVERAGE_HEAD, Document, FigureFile, Number, Table, words
from switchkd_cli.report.formats.template import render

FIGURE = re.compile(r"[\d.,]+( of \d+)?")  # text that aligns as a number does
IDS = re.compile(r'(\bid="|url\(#|href="#)')


def to_html(document: Document, folder: Path) -> str:
    """The whole document; figures are read from the folder."""
    filters = (FIGURE.fullmatch, _set_apart, _scale, _drawn, words)
    return render("report.html.jinja", document, *filters, folder=folder)


def _set_apart(head: str) -> str:
    """The class of a column that is set apart from those before it."""
    return "total" if head == AVERAGE_HEAD else "opens" if head in ANSWER_KINDS.values() else ""


def _drawn(figure: FigureFile, folder: Path) -> str:
    """An SVG's element, scaled to the page, with ids that no other figure has; any other image as data."""
    path, title = folder / figure.path, escape(figure.title)
    if path.suffix != ".svg":
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        return Markup(f'<img src="data:image/{path.suffix[1:]};base64,{data}" alt="{title}">')
    own = "-".join((*figure.path.parent.parts[1:], path.stem))
    svg = path.read_text(encoding="utf-8")
    svg = IDS.sub(lambda found: f"{found[0]}{own}-", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-label="{title}">{body}')


def _scale(table: Table) -> tuple[int, float, float] | None:
    """The place of the table's plotted column, and where one scale for its intervals and 0 begins and ends."""
    if table.plotted not in table.columns:
        return None
    place = table.columns.index(table.plotted) - 1
    numbers = [cell for cell in table.by_column[place] if isinstance(cell, Number)]
    low, high = (pick(0.0, *(end for of in numbers for end in (of.low, of.high)), 0.0) for pick in (min, max))
    return (place, low, high) if low < high else None
