"""Write a document as GitHub's Markdown, with links to its figures."""

import re

from switchkd_cli.report.document import Document, words
from switchkd_cli.report.formats.template import render

MARKS = re.compile(r"([\\`*_<\[\]])")


def to_markdown(document: Document) -> str:
    """The whole document; paths of figures are relative to its folder. A title without chapters is no heading."""
    return render("report.md.jinja", document, plain, words, _barred).rstrip() + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return MARKS.sub(r"\\\1", text)


def _barred(text: str) -> str:
    """A cell's text; a bar in it ends no cell."""
    return text.replace("|", r"\|")
