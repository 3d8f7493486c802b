"""The measurements: the JSON file, which the tables and the targets read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

VERSION = 1


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(Closed):
    """Many values of one quantity: their median, their quartiles, and the median of each round."""

    median: float
    low: float
    high: float
    rounds: list[float]

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> Spread:
        """Return the spread of the values of each round; there must be at least one."""
        values = [value for given in rounds for value in given]
        low, median, high = _quartiles(values)
        return cls(median=median, low=low, high=high, rounds=[statistics.median(given) for given in rounds])

    def over(self, other: Spread) -> Spread:
        """Return the ratio to another spread, round by round, so that a slowdown of both cancels out."""
        return Spread.of([[a / b] for a, b in zip(self.rounds, other.rounds, strict=True)])


class Row(Closed):
    """One way of doing a group's work.

    `alive_bytes` stay from run to run, `extra_bytes` are the most that a run takes beyond them (allocated.py says what
    is counted). The ratios are to the group's yardstick. `failed`: why there are no figures.
    """

    group: str
    name: str
    note: str = ""
    failed: str = ""
    seconds: Spread | None = None
    phases: dict[str, Spread] = {}
    time_ratio: Spread | None = None
    alive_bytes: int | None = None
    extra_bytes: int | None = None
    memory_ratio: float | None = None
    figures: dict[str, float] = {}

    @property
    def peak_bytes(self) -> int | None:
        return None if self.extra_bytes is None else (self.alive_bytes or 0) + self.extra_bytes

    def quantity(self, name: str) -> float | None:
        """Return `seconds`, `extra_bytes`, `peak_bytes` or a figure, or None if it was not measured."""
        if name == "seconds":
            return self.seconds.median if self.seconds else None
        return getattr(self, name) if name in ("extra_bytes", "peak_bytes") else self.figures.get(name)


class Level(Closed):
    """A level's rows, group by group, and their sizes. The first row of a group is its yardstick."""

    title: str
    setting: dict[str, int | float | str] = {}
    rows: list[Row] = []
    took: float = 0.0  # seconds
    failed: str = ""

    def row(self, group: str, name: str) -> Row | None:
        found = (row for row in self.rows if (row.group, row.name) == (group, name))
        return next(found, None)


class Machine(Closed):
    """What the figures depend on besides the code.

    `load` is the system's load averages before anything was measured; `loaded` says that something else was at work.
    """

    system: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int
    device: str
    device_bytes: int | None
    environment: dict[str, str]
    versions: dict[str, str]
    commit: str | None
    load: tuple[float, float, float]
    loaded: bool


class Bench(Closed):
    """One run of the benchmark."""

    version: int = VERSION
    began: str
    quick: bool
    machine: Machine
    levels: dict[str, Level] = {}


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one group with their ratios to its yardstick, the first."""
    first = rows[0]
    return [row.model_copy(update=_ratios(row, first)) for row in rows]


def _ratios(row: Row, first: Row) -> dict[str, Spread | float | None]:
    timed = row.seconds is not None and first.seconds is not None
    counted = row.extra_bytes is not None and first.extra_bytes
    return {
        "time_ratio": row.seconds.over(first.seconds) if timed else None,
        "memory_ratio": row.extra_bytes / first.extra_bytes if counted else None,
    }


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))
