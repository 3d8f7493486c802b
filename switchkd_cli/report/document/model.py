"""A document before it is written: one model for a command's tables and for the report of several recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from switchkd_cli.report.document.cells import Cell

LineKind = Literal["teacher", "run", "gain", "baseline", "paper"]
"""What a line shows. Baselines and the paper's numbers stand under a heading of their own."""

HEADINGS: dict[LineKind, str] = {"baseline": "baselines", "paper": "paper (its own benchmarks)"}
AVERAGE_HEAD = "Avg"  # head of the column of averages
WARNING = "warning"  # first word of a note that readers must not miss


@dataclass(frozen=True)
class Line:
    """A name and a cell for each column after the first."""

    name: str
    cells: tuple[Cell, ...]
    kind: LineKind = "run"

    @property
    def full_name(self) -> str:
        """The name with its heading, for formats in which a heading is no line of its own."""
        return f"{HEADINGS[self.kind]}: {self.name}" if self.kind in HEADINGS else self.name


@dataclass(frozen=True)
class Table:
    """Lines under column heads; the first head is that of the names."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    title: str = ""
    """What tells it from the document's other tables."""
    caption: str = ""
    source: Literal["runs", "paper", "protocol"] = "runs"
    """Where its numbers are from: results of finished runs, the paper as printed, or neither."""
    plotted: str = ""
    """Head of a column of differences that a page can plot next to the table."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class Callout:
    """A paragraph that readers must not miss."""

    words: str
    tone: Literal["world", "problem"] = "world"


@dataclass(frozen=True)
class Points:
    """A list of notes."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class FigureFile:
    """A figure in the document's folder."""

    path: PurePosixPath
    """Relative to that folder; .svg or .png."""
    title: str
    caption: str


Block = Text | Callout | Points | Facts | Commands | Table | FigureFile


@dataclass(frozen=True)
class Section:
    """A chapter, or a part of one. Links point to the anchor."""

    title: str
    anchor: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Document:
    """Blocks, then chapters. A command's document has tables and notes only."""

    title: str
    blocks: tuple[Block, ...]
    sections: tuple[Section, ...] = ()
    subtitle: str = ""

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Table))

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for block in self.blocks if isinstance(block, Points) for note in block.items)
