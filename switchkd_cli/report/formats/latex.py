"""Write tables and notes as LaTeX that pdflatex reads with three packages, whatever characters its titles hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from switchkd_cli.report.document import HEADINGS, Cell, Document, Table, are_words, words

if TYPE_CHECKING:
    from pylatexenc.latexencode import UnicodeToLatexEncoder

PACKAGES = "array,booktabs,graphicx"
WRAPPED = 22  # characters; a column with a longer cell wraps
OWN_RULES = (
    (r"(?:^|(?<=[\s\[(]))-(?=\d)", r"\(-\)"),  # a minus, not a hyphen
    (r"-(?=-)", "-{}"),  # two hyphens would become a dash
    (r"[|]", r"\textbar{}"),
    (r"±", r"\(\pm\)"),  # the encoder's text symbols are bitmaps where no font package is loaded
    (r"×", r"\(\times\)"),
    (r"·", r"\(\cdot\)"),
    (r"²", r"\({}^2\)"),
    (r"³", r"\({}^3\)"),
    (r"[Ѐ-ӿ]", None),  # Cyrillic: the encoder's commands need a font encoding that few documents load
)
"""Rules before the encoder's own: a pattern and its replacement; None keeps the character."""


def to_latex(document: Document) -> str:
    """A table environment for each table, then the notes as a list; the head names the packages it needs."""
    body = [_table(table, table.title or document.title) for table in document.tables]
    notes = "\n".join(f"  \\item {_held(note)}" for note in document.notes)
    body.append(f"\\begin{{itemize}}\\footnotesize\n{notes}\n\\end{{itemize}}")
    head = [f"% {_one_line(document.title)}", f"% \\usepackage{{{PACKAGES}}}"]
    if strange := "".join(dict.fromkeys(re.findall(r"[^\x00-\x7f]", "".join(body)))):
        head.append(
            f"% pdflatex can't set {strange} by itself: \\usepackage{{CJKutf8}} and\n"
            "% \\begin{CJK}{UTF8}{gbsn}\\input{...}\\end{CJK} do for Chinese; lualatex with a font that has it for any"
        )
    return "\n\n".join(["\n".join(head), *body]) + "\n"


def _table(table: Table, title: str) -> str:
    columns = [_column(table.cells(i)) for i in range(len(table.columns) - 1)]
    body = [r"\toprule", _row(table.columns)]
    for heading, lines in groupby(table.lines, key=lambda line: HEADINGS.get(line.kind)):
        body.append(r"\midrule" if heading is None else r"\addlinespace")
        body += [_row((line.full_name, *map(words, line.cells))) for line in lines]
    return "\n".join(
        (
            r"\begin{table}\centering",
            f"\\caption{{{_escaped(title)}}}\\smallskip",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            f"\\begin{{tabular}}{{l{''.join(columns)}}}",
            *body,
            r"\bottomrule",
            "\\end{tabular}}",
            r"\end{table}",
        )
    )


def _column(cells: Sequence[Cell]) -> str:
    """Numbers align right, words left, sentences wrap."""
    if any(are_words(cell, WRAPPED) for cell in cells):
        return r">{\raggedright\arraybackslash}p{9em}"
    return "l" if all(isinstance(cell, str) for cell in cells) else "r"


def _row(texts: Sequence[str]) -> str:
    return " & ".join(map(_held, texts)) + r" \\"


def _held(text: str) -> str:
    """Escaped text, in braces where `\\\\` or `\\item` before it would take its start as their own argument."""
    return f"{{{_escaped(text)}}}" if text[:1] in ("[", "*") else _escaped(text)


def _escaped(text: str) -> str:
    return _encoder().unicode_to_latex(_one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def _encoder() -> UnicodeToLatexEncoder:
    from pylatexenc.latexencode import RULE_REGEX, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

    own = [
        (re.compile(pattern), lambda match, latex=latex: match[0] if latex is None else latex)
        for pattern, latex in OWN_RULES
    ]
    return UnicodeToLatexEncoder(
        conversion_rules=[UnicodeToLatexConversionRule(RULE_REGEX, own), "defaults"],
        replacement_latex_protection="braces-after-macro",
        unknown_char_policy="keep",
        unknown_char_warning=False,
    )
