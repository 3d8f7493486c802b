"""What a report is made of: numbers and words, whatever they are printed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from switchkd_cli.report.stats.intervals import Estimate

Kind = Literal["teacher", "run", "gain", "baseline", "paper"]
"""What a line shows. Baselines and the paper's numbers stand under a heading of their own."""

HEADINGS: dict[Kind, str] = {"baseline": "baselines", "paper": "paper (its own benchmarks)"}


@dataclass(frozen=True)
class Number:
    """A score, or a difference of scores, in points."""

    value: float
    interval: float | None = None
    """Half of the 95 % interval over seeds."""
    seeds: int | None = None
    """How many seeds it is the mean of; None for a single run's number and for one that needs no interval."""
    difference: bool = False
    counted: bool = True
    """Whether its benchmark is in the average."""
    beyond: bool = False
    """Whether a difference is beyond chance over the items, after Holm's correction."""
    detectable: float | None = None
    """The minimum detectable effect of a difference over seeds."""

    @classmethod
    def minus(cls, estimate: Estimate, **more: Any) -> Number:
        """A difference over paired seeds."""
        shown = (estimate.mean, estimate.interval, estimate.seeds)
        return cls(*shown, difference=True, detectable=estimate.detectable, **more)

    @property
    def clear(self) -> bool | None:
        """Whether the interval of a difference leaves out 0; None where there is none to tell."""
        if not self.difference or self.seeds is None:
            return None
        return self.interval is not None and abs(self.value) > self.interval

    @property
    def points(self) -> str:
        """The value alone."""
        return _points(self.value, signed=self.difference)

    @property
    def spread(self) -> str:
        """Half of its interval, or a question mark for the one that a single seed has not; empty if it needs none."""
        if self.seeds is None:
            return ""
        return "± ?" if self.interval is None else f"± {self.interval:.1f}"

    @property
    def mde(self) -> str:
        """What could have been found, of a difference that is not clear; else empty."""
        return _mde(self.detectable) if self.clear is False else ""

    def __str__(self) -> str:
        unclear = ", ".join(filter(None, ("not clear", self.mde))) if self.clear is False else ""
        text = " ".join(filter(None, (self.points, self.spread, unclear)))
        return text if self.counted else f"({text})"


@dataclass(frozen=True)
class Interval:
    """The two ends of a 95 % interval of a difference, in points."""

    low: float
    high: float
    detectable: float | None = None
    """The minimum detectable effect of that difference."""

    @property
    def mde(self) -> str:
        """What could have been found, where the interval holds 0; else empty."""
        return _mde(self.detectable) if self.low <= 0 <= self.high else ""

    def __str__(self) -> str:
        ends = f"[{_points(self.low, signed=True)}, {_points(self.high, signed=True)}]"
        return f"{ends} {self.mde}".rstrip()


@dataclass(frozen=True)
class Probability:
    """A p-value."""

    value: float

    def __str__(self) -> str:
        return "<0.001" if self.value < 0.001 else f"{self.value:.3f}"


Tone = Literal["agrees", "opposite", "unclear", "untested"]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim, in words."""

    text: str
    tone: Tone

    def __str__(self) -> str:
        return self.text


Cell = Number | Interval | Probability | Verdict | int | str | None


@dataclass(frozen=True)
class Line:
    """A name and a cell for each column after the first."""

    name: str
    cells: tuple[Cell, ...]
    kind: Kind = "run"


@dataclass(frozen=True)
class Table:
    """Lines under column heads; the first head is that of the names."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    title: str = ""
    """What tells it from the report's other tables."""


@dataclass(frozen=True)
class Report:
    """Tables of one question, and what must be known to read them."""

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def words(cell: Cell) -> str:
    """A cell as it is printed."""
    return "–" if cell is None else str(cell)


def are_words(cell: Cell, longer_than: int) -> bool:
    """Whether a cell holds a sentence, which may wrap: numbers stay on one line."""
    return not isinstance(cell, Number | Interval) and len(words(cell)) > longer_than


def full_name(line: Line) -> str:
    """The name with its heading, for forms in which a heading is no line of its own."""
    return f"{HEADINGS[line.kind]}: {line.name}" if line.kind in HEADINGS else line.name


def _mde(value: float | None) -> str:
    return f"MDE {value:.1f}" if value else ""  # 0: nothing varied, which says nothing


def _points(value: float, *, signed: bool) -> str:
    return f"{round(value, 1) + 0.0:{'+' if signed else ''}.1f}"  # + 0.0: no minus zero
