"""Write a document as GitHub's Markdown, with links to its figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from switchkd_cli.report.document import model
from switchkd_cli.report.document.cells import Cell, Number, words
from switchkd_cli.report.document.model import Document, Section

MARKS = re.compile(r"([\\`*_<\[\]])")


def to_markdown(document: Document) -> str:
    """The whole document; paths of figures are relative to its folder. A title without chapters is no heading."""
    title = f"# {plain(document.title)}" if document.sections else f"**{plain(document.title)}**"
    subtitle = [f"*{plain(document.subtitle)}*"] if document.subtitle else []
    parts = [title, *subtitle, *map(_block, document.blocks), *_sections(document.sections, 2)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return MARKS.sub(r"\\\1", text)


def _sections(sections: Sequence[Section], level: int) -> list[str]:
    parts = []
    for section in sections:
        parts += [f"{'#' * level} {plain(section.title)}", *map(_block, section.blocks)]
        parts += _sections(section.sections, level + 1)
    return parts


def _block(block: model.Block) -> str:
    match block:
        case model.Text(text):
            return plain(text)
        case model.Callout(text, tone):
            return f"> **{'Note' if tone == 'world' else 'Problem'}.** {plain(text)}"
        case model.Points(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case model.Facts(pairs):
            return _rows([("", ""), ("---", "---"), *((plain(name), plain(value)) for name, value in pairs)])
        case model.Commands(lines):
            return "\n".join(("```sh", *lines, "```"))
        case model.FigureFile(path, title, caption):
            return f"![{plain(title)}](<{path}>)\n\n*{plain(caption)}*"
        case model.Table() as table:
            rows = [tuple(map(plain, table.columns)), ("---", *["---:"] * (len(table.columns) - 1))]
            rows += [(plain(line.full_name), *map(_cell, line.cells)) for line in table.lines]
            source = "*Printed in the paper.* " if table.source == "paper" else ""
            caption = f"{source}{plain(table.caption)}".strip()
            return "\n\n".join(filter(None, (plain(table.title), _rows(rows), caption)))


def _cell(cell: Cell) -> str:
    """A cell's text. A number is bold where its interval excludes 0; nothing else says that it is clear."""
    if not isinstance(cell, Number):
        return plain(words(cell))
    text = ", ".join(filter(None, (f"{cell.points} {cell.spread}".strip(), cell.mde)))
    text = f"**{text}**" if cell.side else text
    text += r"\*" if cell.beyond else ""
    return text if cell.counted else f"({text})"


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """A table's lines; a bar inside a cell is escaped."""
    return "\n".join("| " + " | ".join(text.replace("|", r"\|") for text in row) + " |" for row in rows)
