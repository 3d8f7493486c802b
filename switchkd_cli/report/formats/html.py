"""A document as one HTML page that needs nothing beside itself: its style and its pictures are in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from functools import singledispatch
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from switchkd_cli.benchmarks import ANSWER_KINDS
from switchkd_cli.report.document.blocks import Document, Picture, Sheet
from switchkd_cli.report.formats.whiskers import whiskers
from switchkd_cli.report.tables.cells import HEADINGS, Cell, Interval, Number, Table, Verdict, words
from switchkd_cli.report.tables.per_recipe import AVG

TEMPLATES = Path(__file__).with_name("templates")
HAIR = "\u200a"  # a space narrower than a thin one
LONG = 24  # characters; a cell of more words gets room
FIGURE = re.compile(r"[\d.,]+( of \d+)?")  # text that stands as a number does
IDS = re.compile(r'(\bid="|url\(#|href="#)')


def page(document: Document, folder: Path) -> str:
    """The whole report; pictures are read from the folder."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    places = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    places.globals |= {"lines": _lines, "cell": cell, "looks": _looks, "heads": _heads}
    places.globals["whiskers"] = lambda sheet: {
        name: _marked_up(svg) for name, svg in whiskers(sheet).items()
    }
    places.globals["drawn"] = lambda picture: _drawn(picture, folder)
    places.filters["kind"] = lambda of: type(of).__name__.lower()
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return places.get_template("report.html.jinja").render(document=document, style=_marked_up(style))


@singledispatch
def cell(of: Any) -> str:
    """A cell's content, escaped."""
    return _escaped(words(of))


@cell.register
def _(of: Number) -> str:
    spread = of.spread.replace(" ", HAIR)
    star = "<sup>*</sup>" if of.beyond else ""
    value = of.points.replace("-", "−")
    text = f"{value}{star}" if of.counted else f"({value}){star}"
    return _marked_up(text + "".join(f" <small>{words}</small>" for words in (spread, of.mde) if words))


@cell.register
def _(of: Interval) -> str:
    return _escaped(str(of).replace("-", "−"))


def _looks(of: Cell, head: str) -> str:
    """The classes of a cell under a head."""
    return " ".join(filter(None, (_kind(of), _column(head))))


def _heads(table: Table, place: int) -> str | None:
    """The classes of a column's head: it stands over its cells."""
    cells = [line.cells[place - 1] for line in table.lines] if place else []
    figures = any(_kind(of).startswith("n") for of in cells if of is not None)
    return " ".join(filter(None, ("right" if figures else "", _column(table.columns[place])))) or None


def _kind(of: Cell) -> str:
    if isinstance(of, Number):
        clear = ("up" if of.value > 0 else "down") if of.clear else "unclear" if of.clear is False else ""
        return " ".join(filter(None, ("n", clear, "" if of.counted else "out")))
    if isinstance(of, Verdict):
        return f"verdict {of.tone}"
    if isinstance(of, str) and not FIGURE.fullmatch(of):
        return "words long" if len(of) > LONG else "words"
    return "n"


def _column(head: str) -> str:
    """The class of a column that is set apart from those before it."""
    return "total" if head == AVG else "opens" if head in ANSWER_KINDS.values() else ""


def _lines(sheet: Sheet) -> Iterator[tuple[str, list]]:
    """Groups of lines under their headings; the paper's table says in its caption what it is."""
    for kind, lines in groupby(sheet.table.lines, key=lambda line: line.kind):
        yield ("" if sheet.source == "paper" else HEADINGS.get(kind, "")), list(lines)


def _drawn(picture: Picture, folder: Path) -> str:
    """An SVG as it is, its names made its own; any other picture as data."""
    path = folder / picture.path
    if path.suffix == ".svg":
        return _marked_up(_inline(path.read_text(encoding="utf-8"), picture.path, picture.title))
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:image/{path.suffix[1:]};base64,{data}"
    return _marked_up(f'<img src="{source}" alt="{_escaped(picture.title)}">')


def _inline(svg: str, path: PurePosixPath, title: str) -> str:
    """The picture's element alone: as wide as there is room, and no name in it that another picture has too."""
    own = "-".join((*path.parent.parts[1:], path.stem))
    svg = IDS.sub(lambda found: f"{found[0]}{own}-", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{_escaped(title)}">{body}'


def _escaped(text: str) -> str:
    from markupsafe import escape

    return escape(text)


def _marked_up(text: str) -> str:
    """Text that is HTML already."""
    from markupsafe import Markup

    return Markup(text)
