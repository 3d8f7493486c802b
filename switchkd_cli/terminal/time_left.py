"""A matrix of runs as it goes: how many are done, and how long the rest will take by what its runs took so far.

Rows differ in cost, so a run is foretold by runs of its own row where one has ended; then by where it is itself, once
it is in its last stage; then by the other rows. The runs to come are dealt out to as many places as there are workers,
in their order, which is how they will be started.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any


@dataclass
class Running:
    """A run that was started: its row, its last stage, when it began, and its newest step."""

    row: str
    last: str
    began: float
    step: Mapping[str, Any] = field(default_factory=dict)


class Matrix:
    """Counts of runs, and the seconds that are left.

    `waiting` are the rows of the runs to come, in order; `took` the seconds of runs that finished before, by row.
    """

    def __init__(
        self,
        waiting: Sequence[str],
        *,
        jobs: int,
        took: Mapping[str, Sequence[float]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting = list(waiting)
        self.running: dict[Path, Running] = {}
        self.took = {row: list(seconds) for row, seconds in (took or {}).items()}
        self.done = sum(map(len, self.took.values()))
        self.failed = 0
        self.total = len(self.waiting) + self.done
        self._jobs = jobs
        self._now = now

    def start(self, path: Path, last: str) -> None:
        """The next waiting run begins; it goes by the path of its metrics, and `last` is its last stage."""
        self.running[path] = Running(self.waiting.pop(0), last, self._now())

    def step(self, path: Path, entry: Mapping[str, Any]) -> None:
        """What a run logged of a step."""
        if (run := self.running.get(path)) is not None:
            run.step = entry

    def end(self, path: Path, *, failed: bool) -> None:
        """A run ended. What a failed one took foretells nothing."""
        run = self.running.pop(path)
        if failed:
            self.failed += 1
        else:
            self.done += 1
            self.took.setdefault(run.row, []).append(self._now() - run.began)

    @property
    def over(self) -> bool:
        return not self.waiting and not self.running

    @property
    def left(self) -> float | None:
        """Seconds until the last run ends; None while nothing foretells them."""
        running, waiting = list(self.running.values()), list(self.waiting)  # another thread may change them
        known = self._known(running)
        rests = [self._rest(run, known) for run in running]
        costs = [_expected(row, known) for row in waiting]
        if None in rests or None in costs:
            return None
        places = [*rests, *[0.0] * (self._jobs - len(rests))]
        heapq.heapify(places)
        for cost in costs:
            heapq.heappush(places, heapq.heappop(places) + cost)
        return max(places, default=0.0)

    def _known(self, running: Iterable[Running]) -> dict[str, float]:
        """The seconds of a run by row: of those that ended, else of those that will soon."""
        known = {row: fmean(seconds) for row, seconds in list(self.took.items()) if seconds}
        for run in running:
            if run.row not in known and (rest := _foreseen(run)) is not None:
                known[run.row] = self._now() - run.began + rest
        return known

    def _rest(self, run: Running, known: Mapping[str, float]) -> float | None:
        cost = _expected(run.row, known)
        rests = [_foreseen(run), None if cost is None else max(0.0, cost - (self._now() - run.began))]
        return max((rest for rest in rests if rest is not None), default=None)


def seconds_left(step: Mapping[str, Any]) -> float | None:
    """Seconds that the stage still needs at its speed so far; None where a step says no time."""
    if not step.get("seconds"):
        return None
    return step["seconds"] / step["step"] * (step["steps"] - step["step"])


def _foreseen(run: Running) -> float | None:
    """Seconds until a run is trained; None before its last stage, as what comes after a stage is not known in it."""
    return seconds_left(run.step) if run.step.get("stage") == run.last else None


def _expected(row: str, known: Mapping[str, float]) -> float | None:
    """A run's seconds: its row's, else the mean of the rows that are known."""
    return known.get(row, fmean(known.values()) if known else None)
