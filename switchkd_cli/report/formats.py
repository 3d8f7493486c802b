"""One report in every form that can be asked for: text, Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.report.cells import Cell, Interval, Number, Probability, Report, Table, full_name, words
from switchkd_cli.report.render import to_json, to_markdown, to_text

CELLS = ("value", "interval", "low", "high", "seeds", "counted")
"""What a CSV line says of a cell beside its text: a score or p-value, half of its own interval over so many
seeds, an interval's ends, whether it is in the average."""


def to_latex(report: Report) -> str:
    """A table environment for each table (booktabs, graphicx, utf8), the notes below as a list."""
    parts = [f"% {report.title}", "% \\usepackage{booktabs,graphicx}"]
    parts += [_latex_table(table, table.title or report.title) for table in report.tables]
    notes = "\n".join(f"  \\item {_escaped(note)}" for note in report.notes)
    parts.append(f"\\begin{{itemize}}\\footnotesize\n{notes}\n\\end{{itemize}}")
    return "\n\n".join(parts) + "\n"


def to_csv(report: Report) -> str:
    """A line for each cell, so that tables of different columns make one: table, line, column, text, numbers.

    The notes are lines of a table `notes`.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, ("table", "kind", "line", "column", "text", *CELLS), lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        writer.writerows(_csv_lines(table, table.title or report.title))
    for note in report.notes:
        writer.writerow({"table": "notes", "text": note})
    return out.getvalue()


FORMATS: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {"text": to_text, "markdown": to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
)
SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".txt": "text", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
)


def chosen(name: str | None, file: Path | None) -> str | None:
    """The form that is asked for: the one named, else the file's by its suffix; None for the screen.

    Raises UserError for a name or a suffix that is none of ours, and for a file that can't be written.
    """
    problems = []
    if name is not None and name not in FORMATS:
        problems.append(f"--format: unknown, got {name!r}{did_you_mean(name, FORMATS)}")
    if file is not None and name is None and file.suffix not in SUFFIXES:
        problems.append(f"--out-file: which format? {file} ends in none of {' '.join(SUFFIXES)}")
    if file is not None and not file.absolute().parent.is_dir():
        problems.append(f"--out-file: {file.parent} is no folder")
    if file is not None and file.is_dir():
        problems.append(f"--out-file: {file} is a folder")
    if problems:
        raise UserError(problems, hint=f"--format {'|'.join(FORMATS)}")
    return name or (SUFFIXES[file.suffix] if file is not None else None)


def _csv_lines(table: Table, title: str) -> Iterator[dict[str, object]]:
    for line in table.lines:
        for column, cell in zip(table.columns[1:], line.cells, strict=True):
            own = {"table": title, "kind": line.kind, "line": line.name, "column": column}
            yield own | {"text": "" if cell is None else words(cell)} | _numbers(cell)


def _numbers(cell: Cell) -> dict[str, object]:
    """The numbers behind a cell, unrounded."""
    if isinstance(cell, Number | Interval | Probability):
        known = asdict(cell)
        return {name: known[name] for name in CELLS if known.get(name) is not None}
    return {"value": cell} if isinstance(cell, int) else {}


def _latex_table(table: Table, title: str) -> str:
    rows = [(full_name(line), *map(words, line.cells)) for line in table.lines]
    long = [max((len(row[i]) for row in rows), default=0) for i in range(len(table.columns))]
    layout = "l" + "".join("r" if width <= 22 else "p{9em}" for width in long[1:])
    body = [r"\toprule", _latex_row(table.columns), r"\midrule", *map(_latex_row, rows), r"\bottomrule"]
    return "\n".join(
        (
            r"\begin{table}\centering",
            f"\\caption{{{_escaped(title)}}}",
            f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n\\begin{{tabular}}{{{layout}}}",
            *body,
            "\\end{tabular}}",
            r"\end{table}",
        )
    )


def _latex_row(row: tuple[str, ...]) -> str:
    return (
        " & ".join(f"{{{_escaped(text)}}}" if text.startswith("[") else _escaped(text) for text in row)
        + r" \\"
    )


LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"\textpm{}",
        "–": "--",
        "·": r"\textperiodcentered{}",
    }
    | {
        "×": r"\texttimes{}",
        "−": r"\textminus{}",
        "λ": r"\(\lambda\)",
        "τ": r"\(\tau\)",
        "²": r"\texttwosuperior{}",
    }
)


def _escaped(text: str) -> str:
    return text.translate(LATEX)
