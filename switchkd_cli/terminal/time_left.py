"""Runs that are followed while they train: how many are done, and an estimate of the time that the rest needs.

Rows differ in cost. A run's time is estimated from finished runs of its own row; without one, from its own progress
once it is in its last stage; then from the other rows. Waiting runs are assigned to workers in their order, as they
will be started.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any


@dataclass
class Follower:
    """A run that was started, and its growing metrics file: the position up to which it was read, and the newest step."""

    path: Path
    label: str
    idle: str = "no step yet"  # the run loads its models, or waits for a stage that another run trains
    row: str = ""
    last: str = ""  # its last stage
    began: float = 0.0
    offset: int = 0
    file: int = 0  # inode: when a run starts again, its earlier file is moved away and another one takes its place
    step: dict[str, Any] = field(default_factory=dict)

    def read(self) -> Iterator[dict[str, Any]]:
        """The entries that were completed since the last call; all of them when another file took its place.

        A line that can't be read becomes an event that says so; the run itself is not affected.
        """
        try:
            with self.path.open("rb") as stream:
                if (file := os.fstat(stream.fileno()).st_ino) != self.file:
                    self.file, self.offset = file, 0
                stream.seek(self.offset)
                text = stream.read()
        except FileNotFoundError:
            return
        complete = text[: text.rfind(b"\n") + 1]
        self.offset += len(complete)
        for entry in complete.splitlines():
            try:
                yield json.loads(entry)
            except ValueError:
                yield {"event": "unreadable line", "text": f"in {self.path}"}


@dataclass
class Matrix:
    """Counts of runs, and the estimated seconds that are left.

    `waiting` are the rows of the waiting runs, in order; `took` the seconds of finished runs, by row, also of those that
    finished before. `jobs` run at a time.
    """

    waiting: list[str]
    jobs: int
    took: dict[str, list[float]] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic
    running: dict[Path, Follower] = field(default_factory=dict)
    failed: int = 0

    def __post_init__(self) -> None:
        self.total = len(self.waiting) + self.done

    @property
    def done(self) -> int:
        return sum(map(len, self.took.values()))

    def start(self, path: Path, last: str, label: str = "", idle: str = Follower.idle) -> None:
        """The next waiting run begins; it is named by the path of its metrics, and `last` is its last stage."""
        self.running[path] = Follower(path, label, idle, self.waiting.pop(0), last, self.now())

    def end(self, path: Path, *, failed: bool) -> None:
        """A run ended. The time of a failed one estimates nothing."""
        run = self.running.pop(path)
        if failed:
            self.failed += 1
        else:
            self.took.setdefault(run.row, []).append(self.now() - run.began)

    @property
    def over(self) -> bool:
        return not self.waiting and not self.running

    @property
    def left(self) -> float | None:
        """Estimated seconds until the last run ends; None while there is nothing to estimate them from."""
        running, waiting, now = list(self.running.values()), list(self.waiting), self.now()  # threads may change them
        # before its last stage, a run's end is not known: later stages have another speed
        steps = [seconds_left(run.step) if run.step.get("stage") == run.last else None for run in running]
        known = {row: fmean(seconds) for row, seconds in list(self.took.items()) if seconds}
        for run, rest in zip(running, steps, strict=True):
            if rest is not None:
                known.setdefault(run.row, now - run.began + rest)
        if not known:
            return None if running or waiting else 0.0
        mean = fmean(known.values())
        workers = [0.0] * (self.jobs - len(running))  # seconds until each worker is free
        for run, rest in zip(running, steps, strict=True):
            workers.append(max(rest or 0.0, known.get(run.row, mean) - (now - run.began)))
        for row in waiting:
            workers[workers.index(min(workers))] += known.get(row, mean)
        return max(workers, default=0.0)


def seconds_left(step: Mapping[str, Any]) -> float | None:
    """Estimated seconds until the stage ends, from its speed so far; None when the step has no time."""
    if not step.get("seconds"):
        return None
    return step["seconds"] / step["step"] * (step["steps"] - step["step"])
