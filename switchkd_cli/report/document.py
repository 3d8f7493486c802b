"""A document before it is written: one model for a command's tables and for the report of several recipes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, Self

Side = Literal[-1, 0, 1]
Tone = Literal["agrees", "opposite", "unclear", "untested"]
LineKind = Literal["teacher", "run", "gain", "baseline", "paper"]
"""What a line shows. Baselines and the paper's numbers stand under a heading of their own."""

HEADINGS: dict[LineKind, str] = {"baseline": "baselines", "paper": "paper (its own benchmarks)"}
LEVEL = 0.95  # of every interval
UPPER = (1 + LEVEL) / 2
POWER = 0.8  # of a minimum detectable effect
AVERAGE_HEAD = "Avg"  # head of the column of averages
LONGEST_WORD = 22  # characters; a column with a longer cell may wrap
WARNING = "warning"  # first word of a note that readers must not miss


def side(low: float, high: float) -> Side:
    """1 or -1 where an interval lies above or below 0 as a whole; 0 where it includes 0: not more than chance.

    Every verdict over seeds or over items, in tables, reports and on the teacher, is this one.
    """
    return 1 if low > 0 else -1 if high < 0 else 0


@dataclass(frozen=True)
class Interval:
    """The two ends of a 95 % interval of a difference, in points."""

    low: float
    high: float
    detectable: float | None = None
    """The minimum detectable effect of that difference."""
    digits: int = 1

    @property
    def mde(self) -> str:
        """The minimum detectable effect where the interval includes 0; else empty, also where nothing varied."""
        return f"MDE {self.detectable:.{self.digits}f}" if self.detectable and side(self.low, self.high) == 0 else ""

    def __str__(self) -> str:
        low, high = (Number(end, difference=True, digits=self.digits).points for end in (self.low, self.high))
        return f"[{low}, {high}] {self.mde}".rstrip()


@dataclass(frozen=True)
class Number:
    """A score, or a difference of scores, in points: a single one, or the mean over seeds or items."""

    value: float
    interval: float | None = None
    """Half of its 95 % interval; None with one seed."""
    seeds: int | None = None
    """The number of seeds (or items) it is the mean of; None for a single run's and where no interval is needed."""
    difference: bool = False
    counted: bool = True
    """Whether its benchmark is in the average."""
    beyond: bool = False
    """Whether a difference is beyond chance over the items, after Holm's correction."""
    detectable: float | None = None
    """The minimum detectable effect: the true mean that as many seeds tell from 0 in 80 of 100 cases."""
    digits: int = 1
    """Decimal places: more for a score on lmms-eval's own scale."""

    @property
    def ends(self) -> Interval:
        """The two ends of its interval."""
        half = self.interval or 0.0
        return Interval(self.value - half, self.value + half, self.detectable, self.digits)

    @property
    def side(self) -> Side | None:
        """1 or -1 for a clear difference, 0 for an unclear one; None where there is nothing to tell."""
        if not self.difference or self.seeds is None:
            return None
        return 0 if self.interval is None else side(self.ends.low, self.ends.high)

    @property
    def points(self) -> str:
        """The value alone."""
        rounded = round(self.value, self.digits) + 0.0  # no minus zero
        return f"{rounded:{'+' if self.difference else ''}.{self.digits}f}"

    @property
    def spread(self) -> str:
        """Half of its interval, or a question mark with a single seed; empty where no interval is needed."""
        if self.seeds is None:
            return ""
        return "± ?" if self.interval is None else f"± {self.interval:.{self.digits}f}"

    def __str__(self) -> str:
        unclear = ", ".join(filter(None, ("not clear", self.ends.mde))) if self.side == 0 else ""
        text = " ".join(filter(None, (self.points, self.spread, unclear)))
        return text if self.counted else f"({text})"


@dataclass(frozen=True)
class Probability:
    """A p-value."""

    value: float

    def __str__(self) -> str:
        return "<0.001" if self.value < 0.001 else f"{self.value:.3f}"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, in words."""

    text: str
    tone: Tone

    def __str__(self) -> str:
        return self.text


Cell = Number | Interval | Probability | Verdict | int | str | None


def words(cell: Cell) -> str:
    """A cell as it is printed."""
    return "–" if cell is None else str(cell)


def are_words(cell: Cell) -> bool:
    """Whether a cell holds a sentence, which may wrap: numbers stay on one line."""
    return not isinstance(cell, Number | Interval) and len(words(cell)) > LONGEST_WORD


@dataclass(frozen=True)
class Line:
    """A name and a cell for each column after the first."""

    name: str
    cells: tuple[Cell, ...]
    kind: LineKind = "run"


Column = tuple[str, str | Callable[[Any], Any]]
"""A head, and what a row has under it: the name of its attribute, or a function of the row."""


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

    @classmethod
    def of(cls, rows: Iterable[Any], columns: Iterable[Column], **more: Any) -> Self:
        """A line for each row; the first column is the names."""
        heads, gets = zip(*columns, strict=True)
        name, *cells = (attrgetter(get) if isinstance(get, str) else get for get in gets)
        return cls(heads, tuple(Line(name(row), tuple(cell(row) for cell in cells)) for row in rows), **more)

    @property
    def by_column(self) -> list[list[Cell]]:
        """The cells under each head, without the names."""
        return [[line.cells[place] for line in self.lines] for place in range(len(self.columns) - 1)]

    @property
    def groups(self) -> Iterator[tuple[str, list[Line]]]:
        """Groups of lines of one kind under their headings; the paper's own table has a label instead."""
        for kind, lines in groupby(self.lines, key=attrgetter("kind")):
            yield ("" if self.source == "paper" else HEADINGS.get(kind, "")), list(lines)


class Text(NamedTuple):
    """A paragraph: plain, a note on the world or a problem that readers must not miss, or lines for a shell."""

    words: str
    tone: Literal["", "world", "problem", "shell"] = ""


class Points(NamedTuple):
    """A list of notes."""

    items: tuple[str, ...]


class Facts(NamedTuple):
    """Names and their values."""

    pairs: tuple[tuple[str, str], ...]


class FigureFile(NamedTuple):
    """A figure in the document's folder."""

    path: PurePosixPath
    """Relative to that folder; .svg or .webp."""
    title: str
    caption: str


Block = Text | Points | Facts | Table | FigureFile


class Document(NamedTuple):
    """Blocks, then chapters, and their parts. A command's document has tables and notes only."""

    title: str
    blocks: tuple[Block, ...]
    sections: tuple["Document", ...] = ()
    subtitle: str = ""
    anchor: str = ""
    """Of a chapter or a part: links point to it."""

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Table))

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for block in self.blocks if isinstance(block, Points) for note in block.items)
