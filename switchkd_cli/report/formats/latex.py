"""Write tables and notes as LaTeX that pdflatex reads with three packages, whatever characters its titles hold."""

import re
from functools import cache
from typing import Any

from switchkd_cli.package_data import read_yaml
from switchkd_cli.report.document import Document, are_words, words
from switchkd_cli.report.formats.template import render


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

    rules = read_yaml(__file__)
    own = [(re.compile(pattern), latex) for pattern, latex in rules.items()]
    return UnicodeToLatexEncoder(
        conversion_rules=[UnicodeToLatexConversionRule(RULE_REGEX, own), "defaults"],
        replacement_latex_protection="braces-after-macro",
        unknown_char_policy="keep",
        unknown_char_warning=False,
    )


def _strange(text: str) -> str:
    """The characters that pdflatex has no font for."""
    return "".join(dict.fromkeys(re.findall(r"[^\x00-\x7f]", text)))
