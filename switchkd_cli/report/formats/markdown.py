"""A document as GitHub's Markdown, its pictures linked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import singledispatch
from pathlib import Path

from switchkd_cli.report.document.blocks import (
    Block,
    Callout,
    Commands,
    Document,
    Facts,
    Picture,
    Points,
    Section,
    Sheet,
    Text,
)
from switchkd_cli.report.formats.text import piped
from switchkd_cli.report.tables.cells import Cell, Number, full_name, words

MARKS = re.compile(r"([\\`*_<\[\]])")
SOURCES = {"runs": "", "paper": "*Printed in the paper.* ", "protocol": ""}


def page(document: Document, folder: Path) -> str:
    """The whole report; paths of pictures are relative to the folder, which is not read."""
    parts = [f"# {plain(document.title)}", f"*{plain(document.subtitle)}*", *map(block, document.blocks)]
    for section in document.sections:
        parts += _section(section, 2)
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text that Markdown takes as it is."""
    return MARKS.sub(r"\\\1", text)


@singledispatch
def block(of: Block) -> str:
    raise TypeError(f"no Markdown for {type(of).__name__}")


@block.register
def _(of: Text) -> str:
    return plain(of.words)


@block.register
def _(of: Callout) -> str:
    return f"> **{'Note' if of.tone == 'world' else 'Problem'}.** {plain(of.words)}"


@block.register
def _(of: Points) -> str:
    return "\n".join(f"- {plain(item)}" for item in of.items)


@block.register
def _(of: Facts) -> str:
    return piped([("", ""), ("---", "---"), *((plain(name), plain(what)) for name, what in of.pairs)])


@block.register
def _(of: Commands) -> str:
    return "\n".join(("```sh", *of.lines, "```"))


@block.register
def _(of: Sheet) -> str:
    rows = [of.table.columns, ("---", *["---:"] * (len(of.table.columns) - 1))]
    rows += [(plain(full_name(line)), *map(cell, line.cells)) for line in of.table.lines]
    caption = f"{SOURCES[of.source]}{plain(of.caption)}".strip()
    return piped(rows) + (f"\n\n{caption}" if caption else "")


@block.register
def _(of: Picture) -> str:
    return f"![{plain(of.title)}](<{of.path}>)\n\n*{plain(of.caption)}*"


def cell(of: Cell) -> str:
    """A number is bold where its interval leaves 0 out; nothing else says that it is clear."""
    if not isinstance(of, Number):
        return plain(words(of))
    text = ", ".join(filter(None, (f"{of.points} {of.spread}".strip(), of.mde)))
    text = f"**{text}**" if of.clear else text
    text += r"\*" if of.beyond else ""
    return text if of.counted else f"({text})"


def _section(section: Section, level: int) -> Iterator[str]:
    yield f"{'#' * level} {plain(section.title)}"
    yield from map(block, section.blocks)
    for part in section.sections:
        yield from _section(part, level + 1)
