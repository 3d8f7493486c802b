"""Live progress of runs: follows metrics.jsonl, draws on a terminal, prints plain lines elsewhere, estimates the time left.

Rows differ in cost. A run's time is estimated from finished runs of its own row; without one, from its own progress
once it is in its last stage; then from the other rows. Waiting runs are assigned to workers in their order, as they
will be started.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, Self, TextIO, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from switchkd_cli.errors import discard_output
from switchkd_cli.recipe.schema import VALIDATION


@dataclass(eq=False)
class Follower:
    """A run, and its growing metrics file: the position up to which it was read, and the newest step."""

    path: Path
    label: str
    idle: str = "no step yet"  # the run loads its models, or waits for a stage that another run trains
    row: str = ""  # runs of one row take about equally long
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


Followed = TypeVar("Followed", bound=Follower)


@dataclass
class Matrix(Generic[Followed]):
    """Runs that wait, in their order, and those that run, `jobs` at a time; their counts, and the estimated seconds left.

    `took` are the seconds of finished runs, by row, also of those that finished before.
    """

    waiting: list[Followed]
    jobs: int
    took: dict[str, list[float]] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic
    running: list[Followed] = field(default_factory=list)
    failed: int = 0

    def __post_init__(self) -> None:
        self.total = len(self.waiting) + self.done

    @property
    def done(self) -> int:
        return sum(map(len, self.took.values()))

    def start(self) -> None:
        """The next waiting run begins."""
        run = self.waiting.pop(0)
        run.began = self.now()
        self.running.append(run)

    def end(self, run: Followed, *, failed: bool) -> None:
        """A run ended. The time of a failed one estimates nothing."""
        self.running.remove(run)
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
        running, waiting, now = list(self.running), list(self.waiting), self.now()  # threads may change them
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
        for run in waiting:
            workers[workers.index(min(workers))] += known.get(run.row, mean)
        return max(workers, default=0.0)


def seconds_left(step: Mapping[str, Any]) -> float | None:
    """Estimated seconds until the stage ends, from its speed so far; None when the step has no time."""
    if not step.get("seconds"):
        return None
    return step["seconds"] / step["step"] * (step["steps"] - step["step"])


POLL = 0.25  # seconds between two looks at the files
PLAIN_LINES = 10  # per stage, where nothing can be redrawn


class Progress:
    """Follow metrics files, and the matrix that they belong to, in a thread of its own."""

    def __init__(self, stream: TextIO | None = None, matrix: Matrix[Any] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.matrix: Matrix[Any] = matrix or Matrix([], jobs=1)
        self._estimated = False  # whether the matrix's end was estimated before
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._live: Any = None

    def follow(self, path: Path, label: str) -> None:
        """Show what a single run logs to a file."""
        self.matrix.running.append(Follower(path, label))

    def tell_matrix(self) -> None:
        """Print a line on the whole matrix: always where nothing is drawn, otherwise when all runs have ended."""
        if self.matrix.total and (self._live is None or self.matrix.over):
            self.say(matrix_line(self.matrix, datetime.now()))

    def say(self, text: str) -> None:
        """Print a line. When the terminal or pipe is closed, the runs continue without output."""
        try:
            if self._live is not None:
                self._live.console.print(text)
            else:
                print(text, file=self.stream, flush=True)
        except OSError:
            discard_output(self.stream)

    def draw(self) -> Any:
        """The live display: one line on the matrix, and two per run."""

        def bar(done: int, total: int, before: Sequence[Any], after: Sequence[str]) -> Table:
            row = Table.grid(padding=(0, 1))
            row.add_row(*before, ProgressBar(total=total, completed=done, width=24), *after)
            return row

        lines: list[Any] = []
        if self.matrix.total:
            ended = self.matrix.done + self.matrix.failed
            lines.append(bar(ended, self.matrix.total, (), [matrix_line(self.matrix, datetime.now())]))
        for follower in list(self.matrix.running):
            if s := follower.step:
                before = [Text(follower.label, style="bold"), str(s.get("stage", ""))]
                lines.append(bar(s["step"], s["steps"], before, [f"{s['step']}/{s['steps']}", *pace(s)]))
                lines.append(Text("  " + figures(s), style="dim"))
            elif self.matrix.total:
                lines.append(Text(f"{follower.label}  {follower.idle}", style="dim"))
        return Group(*lines)

    def read(self) -> None:
        """Show what was logged since the last call."""
        with self._lock:
            for follower in list(self.matrix.running):
                for entry in follower.read():
                    self._entry(follower, entry)

    def _entry(self, follower: Follower, entry: dict[str, Any]) -> None:
        if "event" in entry:
            self.say(f"{follower.label}: {event(entry)}")
        elif "step" in entry and "steps" in entry:
            before = follower.step
            same = before.get("stage") == entry.get("stage")  # its newest validation stays
            kept = {name: value for name, value in before.items() if same and name.startswith(VALIDATION)}
            follower.step = kept | entry
            if self._live is None and _crosses(before, entry):
                self.say(f"{follower.label}: {line(follower.step)}")
            if not self._estimated and self.matrix.left is not None:
                self._estimated = True
                self.tell_matrix()

    def _watch(self) -> None:
        while not self._stop.wait(POLL):
            self.read()

    def __enter__(self) -> Self:
        if self.stream.isatty():
            console = Console(file=self.stream, markup=False, emoji=False, highlight=False)
            self._live = Live(get_renderable=self.draw, console=console, refresh_per_second=4, transient=True)
            self._live.start()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="progress")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.read()
        if self._live is not None:
            self._live.stop()


def _crosses(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a tenth of the stage was completed since the earlier entry."""
    if before.get("stage") != now.get("stage") or before.get("step", 0) > now["step"]:
        return True
    return before["step"] * PLAIN_LINES // now["steps"] < now["step"] * PLAIN_LINES // now["steps"]


def line(step: Mapping[str, Any]) -> str:
    """One step as a line of text."""
    share = 100 * step["step"] // step["steps"]
    head = f"{step.get('stage', '')} {step['step']}/{step['steps']} ({share}%)"
    return " · ".join(part for part in (head, *pace(step), figures(step)) if part)


def figures(step: Mapping[str, Any]) -> str:
    """The losses, learning rate and memory of a step, and what the newest validation gave."""
    terms = [f"{key.removeprefix('loss/')} {_number(value)}" for key, value in step.items() if key[:5] == "loss/"]
    parts = [f"loss {_number(step.get('loss'))}" + (f" ({', '.join(terms)})" if terms else "")]
    if step.get("lr") is not None:
        parts.append(f"lr {step['lr']:.1e}")
    if step.get("memory_mib") is not None:
        parts.append(f"{step['memory_mib']:,.0f} MiB")
    validated = {key.removeprefix(VALIDATION): value for key, value in step.items() if key.startswith(VALIDATION)}
    if validated:
        shown = [f"{key.replace('_', ' ')} {_number(value)}" for key, value in validated.items() if "/" not in key]
        parts.append(f"validation {', '.join(shown)}")
    return " · ".join(parts)


def event(entry: Mapping[str, Any]) -> str:
    """An event as a line of text: its name and stage, its text, and its other fields."""
    name = " ".join(str(entry[key]).replace("_", " ") for key in ("event", "stage") if key in entry)
    elsewhere = ("event", "stage", "text", "about")
    others = [f"{key} {_number(value)}" for key, value in entry.items() if key not in elsewhere]
    return ": ".join(part for part in (name, str(entry.get("text", "")), ", ".join(others)) if part)


def pace(step: Mapping[str, Any]) -> tuple[str, str]:
    """The time that the stage still needs at its speed so far, and that speed; empty where they are not known."""
    seconds, rate = seconds_left(step), step.get("tokens_per_second")
    return "" if seconds is None else f"{clock(seconds)} left", f"{rate:,.0f} tokens/s" if rate else ""


def clock(seconds: float) -> str:
    """`2:15`, or `1:02:15` from an hour on."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def matrix_line(matrix: Matrix[Any], now: datetime) -> str:
    """Counts of runs, and the estimated end of the last one; `now` is the reader's local time."""
    counts = {"failed": matrix.failed, "running": len(matrix.running), "to come": len(matrix.waiting)}
    head = f"{matrix.done} of {matrix.total} done"
    parts = [", ".join([head, *(f"{count} {word}" for word, count in counts.items() if count)])]
    if seconds := matrix.left:
        end = now + timedelta(seconds=seconds)
        day = "" if end.date() == now.date() else f"{end:%a %d %b} "
        parts += [f"{clock(seconds)} left", f"ends about {day}{end:%H:%M}"]
    return " · ".join(parts)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "non-finite" if value is None else str(value)
