"""Write a document from a template: as GitHub's Markdown, as LaTeX, or as one HTML page.

The Markdown has links to its figures. The LaTeX is read by pdflatex with three packages, whatever characters its titles
hold. The page needs no other file: its style and its figures are in it.
"""

import base64
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from switchkd_cli.benchmarks import ANSWER_KINDS
from switchkd_cli.package_data import read_yaml
from switchkd_cli.report.document import AVERAGE_HEAD, Document, FigureFile, Number, Table, are_words, words

TEMPLATES = Path(__file__).with_name("templates")
LATEX: dict[str, dict[str, str]] = read_yaml(__file__, "latex.yaml")
MARKS = re.compile(r"([\\`*_<\[\]])")  # have a meaning in Markdown
FIGURE = re.compile(r"[\d.,]+( of \d+)?")  # text that aligns as a number does
IDS = re.compile(r'(\bid="|url\(#|href="#)')


def environment_of(folder: Path, *filters: Callable[..., Any], **settings: Any) -> jinja2.Environment:
    """What reads the templates of a folder, which use these filters by name.

    Statements leave no lines, and a name without a value is an error.
    """
    kept: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), **kept, **settings)
    environment.filters |= {of.__name__.lstrip("_"): of for of in filters}
    return environment


def render(name: str, document: Any, *filters: Callable[..., Any], **more: Any) -> str:
    """A document, or what else a template shows, in one that uses these filters by name.

    In HTML text is escaped, unless it is `Markup`.
    """
    signs = LATEX["signs"] if ".tex" in name else {}
    environment = environment_of(TEMPLATES, *filters, autoescape=".html" in name, **signs)
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(document=document, style=style, **more)


def to_markdown(document: Document) -> str:
    """The whole document; paths of figures are relative to its folder. A title without chapters is no heading."""
    return render("report.md.jinja", document, plain, words, _barred).rstrip() + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return MARKS.sub(r"\\\1", text)


def _barred(text: str) -> str:
    """A cell's text; a bar in it ends no cell."""
    return text.replace("|", r"\|")


def to_latex(document: Document) -> str:
    """A table environment for each table, then the notes as a list; the head names the packages it needs."""
    filters = (are_words, _held, _escaped, _strange, words)
    return render("tables.tex.jinja", document, *filters).rstrip() + "\n"


def _held(text: str) -> str:
    """Escaped text, in braces where `\\\\` or `\\item` before it would take its start as their own argument."""
    return f"{{{_escaped(text)}}}" if text[:1] in ("[", "*") else _escaped(text)


def _escaped(text: str) -> str:
    return _encoder().unicode_to_latex(" ".join(text.split()))


@cache
def _encoder() -> Any:
    from pylatexenc.latexencode import RULE_REGEX, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

    own = [(re.compile(pattern), latex) for pattern, latex in LATEX["rules"].items()]
    return UnicodeToLatexEncoder(
        conversion_rules=[UnicodeToLatexConversionRule(RULE_REGEX, own), "defaults"],
        replacement_latex_protection="braces-after-macro",
        unknown_char_policy="keep",
        unknown_char_warning=False,
    )


def _strange(text: str) -> str:
    """The characters that pdflatex has no font for."""
    return "".join(dict.fromkeys(re.findall(r"[^\x00-\x7f]", text)))


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
        return Markup(f'<img src="{data_uri(path.read_bytes(), path.suffix[1:])}" alt="{title}">')
    own = "-".join((*figure.path.parent.parts[1:], path.stem))
    svg = path.read_text(encoding="utf-8")
    svg = IDS.sub(lambda found: f"{found[0]}{own}-", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-label="{title}">{body}')


def data_uri(image: bytes, kind: str) -> str:
    """An image file's content, of a kind such as `png`, as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _scale(table: Table) -> tuple[int, float, float] | None:
    """The place of the table's plotted column, and where one scale for its intervals and 0 begins and ends."""
    if table.plotted not in table.columns:
        return None
    place = table.columns.index(table.plotted) - 1
    numbers = [cell for cell in table.by_column[place] if isinstance(cell, Number)]
    ends = [0.0, *(end for of in numbers for end in (of.ends.low, of.ends.high))]
    low, high = min(ends), max(ends)
    return (place, low, high) if low < high else None
