"""The cells of a table: scores, differences, intervals, p-values, verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from switchkd_cli.report.stats.intervals import Estimate, side


@dataclass(frozen=True)
class Number:
    """A score, or a difference of scores, in points."""

    value: float
    interval: float | None = None
    """Half of the 95 % interval over seeds."""
    seeds: int | None = None
    """The number of seeds it is the mean of; None for a single run's number and where no interval is needed."""
    difference: bool = False
    counted: bool = True
    """Whether its benchmark is in the average."""
    beyond: bool = False
    """Whether a difference is beyond chance over the items, after Holm's correction."""
    detectable: float | None = None
    """The minimum detectable effect of a difference over seeds."""

    @classmethod
    def mean(cls, estimate: Estimate) -> Number:
        """A mean over seeds."""
        return cls(estimate.mean, estimate.interval, estimate.count)

    @classmethod
    def minus(cls, estimate: Estimate, **more: Any) -> Number:
        """A difference over paired seeds."""
        numbers = (estimate.mean, estimate.interval, estimate.count)
        return cls(*numbers, difference=True, detectable=estimate.detectable, **more)

    @property
    def side(self) -> Literal[-1, 0, 1] | None:
        """1 or -1 for a clear difference, 0 for an unclear one; None where there is nothing to tell."""
        if not self.difference or self.seeds is None:
            return None
        return 0 if self.interval is None else side(self.value - self.interval, self.value + self.interval)

    @property
    def points(self) -> str:
        """The value alone."""
        return _points(self.value, signed=self.difference)

    @property
    def spread(self) -> str:
        """Half of its interval, or a question mark with a single seed; empty where no interval is needed."""
        if self.seeds is None:
            return ""
        return "± ?" if self.interval is None else f"± {self.interval:.1f}"

    @property
    def mde(self) -> str:
        """The minimum detectable effect of an unclear difference; else empty."""
        return _mde(self.detectable) if self.side == 0 else ""

    def __str__(self) -> str:
        unclear = ", ".join(filter(None, ("not clear", self.mde))) if self.side == 0 else ""
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
        """The minimum detectable effect where the interval includes 0; else empty."""
        return _mde(self.detectable) if side(self.low, self.high) == 0 else ""

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
    """The verdict on a claim, in words."""

    text: str
    tone: Tone

    def __str__(self) -> str:
        return self.text


Cell = Number | Interval | Probability | Verdict | int | str | None


def words(cell: Cell) -> str:
    """A cell as it is printed."""
    return "–" if cell is None else str(cell)


def are_words(cell: Cell, longer_than: int) -> bool:
    """Whether a cell holds a sentence, which may wrap: numbers stay on one line."""
    return not isinstance(cell, Number | Interval) and len(words(cell)) > longer_than


def _mde(value: float | None) -> str:
    return f"MDE {value:.1f}" if value else ""  # 0: nothing varied, which says nothing


def _points(value: float, *, signed: bool) -> str:
    return f"{round(value, 1) + 0.0:{'+' if signed else ''}.1f}"  # + 0.0: no minus zero
