"""Live progress of runs: follows metrics.jsonl, draws on a terminal, and prints plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TextIO

from switchkd_cli.errors import discard_output
from switchkd_cli.terminal.log_lines import event, figures, left, line, matrix_line, speed
from switchkd_cli.terminal.time_left import Matrix

POLL = 0.25  # seconds between two looks at the files
PLAIN_LINES = 10  # per stage, where nothing can be redrawn


@dataclass
class Follower:
    """One growing metrics file: the position up to which it was read, and the newest step."""

    path: Path
    label: str
    idle: str = "no step yet"  # the run loads its models, or waits for a stage that another run trains
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


class Progress:
    """Follow metrics files, and the matrix that they belong to, in a thread of its own."""

    def __init__(self, stream: TextIO | None = None, matrix: Matrix | None = None) -> None:
        self.stream = stream or sys.stderr
        self.matrix = matrix
        self._estimated = False  # whether the matrix's end was estimated before
        self.followed: list[Follower] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._live: Any = None

    def follow(self, path: Path, label: str, idle: str = Follower.idle) -> None:
        """Show what is logged to a file; `idle` is the text before the first step."""
        with self._lock:
            self.followed.append(Follower(path, label, idle))

    def forget(self, path: Path) -> None:
        """Read the file to its end and stop drawing it."""
        self._poll()
        with self._lock:
            self.followed = [f for f in self.followed if f.path != path]

    def tell_matrix(self) -> None:
        """Print a line on the whole matrix: always where nothing is drawn, otherwise when all runs have ended."""
        if self.matrix is not None and (self._live is None or self.matrix.over):
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
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        lines: list[Any] = []
        if self.matrix is not None:
            ended = self.matrix.done + self.matrix.failed
            row = Table.grid(padding=(0, 1))
            row.add_row(
                ProgressBar(total=self.matrix.total, completed=ended, width=24),
                Text(matrix_line(self.matrix, datetime.now())),
            )
            lines.append(row)
        for follower in self.followed:
            if not (s := follower.step):
                if self.matrix is not None:
                    lines.append(Text(f"{follower.label}  {follower.idle}", style="dim"))
                continue
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                Text(follower.label, style="bold"),
                Text(str(s.get("stage", ""))),
                ProgressBar(total=s["steps"], completed=s["step"], width=24),
                Text(f"{s['step']}/{s['steps']}"),
                Text(left(s)),
                Text(speed(s)),
            )
            lines += [bar, Text("  " + figures(s), style="dim")]
        return Group(*lines)

    def _poll(self) -> None:
        with self._lock:
            for follower in self.followed:
                for entry in follower.read():
                    self._entry(follower, entry)

    def _entry(self, follower: Follower, entry: dict[str, Any]) -> None:
        if "event" in entry:
            self.say(f"{follower.label}: {event(entry)}")
        elif "step" in entry and "steps" in entry:
            before, follower.step = follower.step, entry
            if self._live is None and _crosses(before, entry):
                self.say(f"{follower.label}: {line(entry)}")
            if self.matrix is not None:
                self.matrix.step(follower.path, entry)
                if not self._estimated and self.matrix.left is not None:
                    self._estimated = True
                    self.tell_matrix()

    def _watch(self) -> None:
        while not self._stop.wait(POLL):
            self._poll()

    def __enter__(self) -> Self:
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, markup=False, emoji=False, highlight=False)
            self._live = Live(get_renderable=self.draw, console=console, refresh_per_second=4, transient=True)
            self._live.start()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="progress")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()
        if self._live is not None:
            self._live.stop()


@contextmanager
def progress(path: Path, label: str) -> Iterator[Progress]:
    """Show one run while the block lasts."""
    with Progress() as shown:
        shown.follow(path, label)
        yield shown


def _crosses(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a tenth of the stage was completed since the earlier entry."""
    if before.get("stage") != now.get("stage") or before.get("step", 0) > now["step"]:
        return True
    return before["step"] * PLAIN_LINES // now["steps"] < now["step"] * PLAIN_LINES // now["steps"]
