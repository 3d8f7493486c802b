"""Progress of a matrix of runs: how many are done, and an estimate of the time that the rest needs.

Rows differ in cost. A run's time is estimated from finished runs of its own row; without one, from its own progress
once it is in its last stage; then from the other rows. Waiting runs are assigned to workers in their order, as they
will be started.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any


@dataclass
class Running:
    """A run that was started: its row, its last stage, the time of its start, and its newest step."""

    row: str
    last: str
    began: float
    step: Mapping[str, Any] = field(default_factory=dict)


class Matrix:
    """Counts of runs, and the estimated seconds that are left.

    `waiting` are the rows of the waiting runs, in order; `took` the seconds of runs that finished before, by row.
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
        """The next waiting run begins; it is named by the path of its metrics, and `last` is its last stage."""
        self.running[path] = Running(self.waiting.pop(0), last, self._now())

    def step(self, path: Path, entry: Mapping[str, Any]) -> None:
        """Take the newest step that a run logged."""
        if (run := self.running.get(path)) is not None:
            run.step = entry

    def end(self, path: Path, *, failed: bool) -> None:
        """A run ended. The time of a failed one estimates nothing."""
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
        """Estimated seconds until the last run ends; None while there is nothing to estimate them from."""
        running, waiting, now = list(self.running.values()), list(self.waiting), self._now()  # threads may change them
        # before its last stage, a run's end is not known: later stages have another speed
        steps = [seconds_left(run.step) if run.step.get("stage") == run.last else None for run in running]
        known = {row: fmean(seconds) for row, seconds in list(self.took.items()) if seconds}
        for run, rest in zip(running, steps, strict=True):
            if rest is not None:
                known.setdefault(run.row, now - run.began + rest)
        if not known:
            return None if running or waiting else 0.0
        mean = fmean(known.values())
        workers = [0.0] * (self._jobs - len(running))  # seconds until each worker is free
        for run, rest in zip(running, steps, strict=True):
            workers.append(max(rest or 0.0, known.get(run.row, mean) - (now - run.began)))
        heapq.heapify(workers)
        for row in waiting:
            heapq.heapreplace(workers, workers[0] + known.get(row, mean))
        return max(workers, default=0.0)


def seconds_left(step: Mapping[str, Any]) -> float | None:
    """Estimated seconds until the stage ends, from its speed so far; None when the step has no time."""
    if not step.get("seconds"):
        return None
    return step["seconds"] / step["step"] * (step["steps"] - step["step"])
