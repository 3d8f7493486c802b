"""Live progress of runs: follows metrics.jsonl, draws on a terminal, and prints plain lines elsewhere."""

import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from switchkd_cli.errors import discard_output
from switchkd_cli.recipe.schema import VALIDATION
from switchkd_cli.terminal.time_left import Follower, Matrix, seconds_left

POLL = 0.25  # seconds between two looks at the files
PLAIN_LINES = 10  # per stage, where nothing can be redrawn


class Progress:
    """Follow metrics files, and the matrix that they belong to, in a thread of its own."""

    def __init__(self, stream: TextIO | None = None, matrix: Matrix | None = None) -> None:
        self.stream = stream or sys.stderr
        self.matrix = matrix or Matrix([], jobs=1)
        self._estimated = False  # whether the matrix's end was estimated before
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._live: Any = None

    def follow(self, path: Path, label: str) -> None:
        """Show what a single run logs to a file."""
        self.matrix.running[path] = Follower(path, label)

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
        for follower in list(self.matrix.running.values()):
            if s := follower.step:
                before = [Text(follower.label, style="bold"), str(s.get("stage", ""))]
                lines.append(bar(s["step"], s["steps"], before, [f"{s['step']}/{s['steps']}", left(s), speed(s)]))
                lines.append(Text("  " + figures(s), style="dim"))
            elif self.matrix.total:
                lines.append(Text(f"{follower.label}  {follower.idle}", style="dim"))
        return Group(*lines)

    def read(self) -> None:
        """Show what was logged since the last call."""
        with self._lock:
            for follower in list(self.matrix.running.values()):
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
    return " · ".join(part for part in (head, left(step), speed(step), figures(step)) if part)


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


def speed(step: Mapping[str, Any]) -> str:
    rate = step.get("tokens_per_second")
    return f"{rate:,.0f} tokens/s" if rate else ""


def event(entry: Mapping[str, Any]) -> str:
    """An event as a line of text: its name and stage, its text, and its other fields."""
    name = " ".join(str(entry[key]).replace("_", " ") for key in ("event", "stage") if key in entry)
    elsewhere = ("event", "stage", "text", "about")
    others = [f"{key} {_number(value)}" for key, value in entry.items() if key not in elsewhere]
    return ": ".join(part for part in (name, str(entry.get("text", "")), ", ".join(others)) if part)


def left(step: Mapping[str, Any]) -> str:
    """The time that the stage still needs, from its speed so far."""
    seconds = seconds_left(step)
    return "" if seconds is None else f"{clock(seconds)} left"


def clock(seconds: float) -> str:
    """`2:15`, or `1:02:15` from an hour on."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def matrix_line(matrix: Matrix, now: datetime) -> str:
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
