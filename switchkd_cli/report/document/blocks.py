"""A report of many chapters before it is a page: what its HTML and its Markdown are both made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from switchkd_cli.report.tables.cells import Table

Source = Literal["runs", "paper", "protocol"]
"""Where a table's numbers are from: results of finished runs, the paper as printed, or neither."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class Callout:
    """A paragraph that nobody may miss."""

    words: str
    tone: Literal["world", "problem"] = "world"


@dataclass(frozen=True)
class Points:
    """A list of remarks."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """A table with what must be known to read it."""

    table: Table
    caption: str = ""
    source: Source = "runs"
    drawn: str = ""
    """Head of a column of differences that a page can draw beside the table."""


@dataclass(frozen=True)
class Picture:
    """A drawing in the report's folder."""

    path: PurePosixPath
    """Relative to that folder; .svg or .png."""
    title: str
    caption: str


Block = Text | Callout | Points | Facts | Commands | Sheet | Picture


@dataclass(frozen=True)
class Section:
    """A chapter, or a part of one. The anchor is what links point to."""

    title: str
    anchor: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    blocks: tuple[Block, ...]
    sections: tuple[Section, ...]
