"""A report as LaTeX: what pdflatex sets with three packages, whatever characters its titles hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from switchkd_cli.report.tables.cells import HEADINGS, Cell, Report, Table, are_words, full_name, words

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
"""What comes before the encoder's own rules: a pattern and what stands for it; None: itself."""


def to_latex(report: Report) -> str:
    """A table environment for each table, the notes below as a list; the head names the packages it needs."""
    body = [_table(table, table.title or report.title) for table in report.tables]
    notes = "\n".join(f"  \\item {_held(note)}" for note in report.notes)
    body.append(f"\\begin{{itemize}}\\footnotesize\n{notes}\n\\end{{itemize}}")
    head = [f"% {_one_line(report.title)}", f"% \\usepackage{{{PACKAGES}}}"]
    if strange := "".join(dict.fromkeys(re.findall(r"[^\x00-\x7f]", "".join(body)))):
        head.append(
            f"% pdflatex can't set {strange} by itself: \\usepackage{{CJKutf8}} and\n"
            "% \\begin{CJK}{UTF8}{gbsn}\\input{...}\\end{CJK} do for Chinese; lualatex with a font that has it for any"
        )
    return "\n\n".join(["\n".join(head), *body]) + "\n"


def _table(table: Table, title: str) -> str:
    columns = [_column([line.cells[i] for line in table.lines]) for i in range(len(table.columns) - 1)]
    body = [r"\toprule", _row(table.columns), *_lines(table), r"\bottomrule"]
    return "\n".join(
        (
            r"\begin{table}\centering",
            f"\\caption{{{_escaped(title)}}}\\smallskip",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            f"\\begin{{tabular}}{{l{''.join(columns)}}}",
            *body,
            "\\end{tabular}}",
            r"\end{table}",
        )
    )


def _lines(table: Table) -> Iterator[str]:
    """Rows; a rule in front of the first, of the baselines and of the paper's."""
    for heading, lines in groupby(table.lines, key=lambda line: HEADINGS.get(line.kind)):
        yield r"\midrule" if heading is None else r"\addlinespace"
        yield from (_row((full_name(line), *map(words, line.cells))) for line in lines)


def _column(cells: Sequence[Cell]) -> str:
    """Numbers stand to the right, words to the left, sentences wrap."""
    if any(are_words(cell, WRAPPED) for cell in cells):
        return r">{\raggedright\arraybackslash}p{9em}"
    return "l" if all(isinstance(cell, str) for cell in cells) else "r"


def _row(texts: Sequence[str]) -> str:
    return " & ".join(map(_held, texts)) + r" \\"


def _held(text: str) -> str:
    """Escaped; what `\\\\` or `\\item` in front would take for its own argument is held together by braces."""
    return f"{{{_escaped(text)}}}" if text[:1] in ("[", "*") else _escaped(text)


def _escaped(text: str) -> str:
    return _encoder().unicode_to_latex(_one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def _encoder() -> UnicodeToLatexEncoder:
    from pylatexenc.latexencode import RULE_REGEX, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

    own = [
        (re.compile(seen), lambda match, put=put: match[0] if put is None else put) for seen, put in OWN_RULES
    ]
    return UnicodeToLatexEncoder(
        conversion_rules=[UnicodeToLatexConversionRule(RULE_REGEX, own), "defaults"],
        replacement_latex_protection="braces-after-macro",
        unknown_char_policy="keep",
        unknown_char_warning=False,
    )
