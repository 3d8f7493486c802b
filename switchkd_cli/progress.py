"""Training as it goes: reads metrics.jsonl, draws on a terminal and prints plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

POLL = 0.25  # seconds between two looks at the files
PLAIN_LINES = 10  # a stage, where nothing can be redrawn


@dataclass
class Follower:
    """One growing metrics file: what was read of it, and the newest step."""

    path: Path
    label: str
    offset: int = 0
    file: int = 0  # which one lies at the path: an unfinished run's is moved away when the run starts again
    step: dict[str, Any] = field(default_factory=dict)

    def read(self) -> Iterator[dict[str, Any]]:
        """The entries that were completed since the last look; all of them when another file took the place.

        A line that can't be read becomes an event that says so: the runs behind it go on.
        """
        try:
            with self.path.open("rb") as stream:
                if (file := os.fstat(stream.fileno()).st_ino) != self.file:
                    self.file, self.offset = file, 0
                stream.seek(self.offset)
                text = stream.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                yield {"event": "unreadable line", "text": f"in {self.path}"}


class Progress:
    """Follows any number of metrics files from a thread of its own."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.followed: list[Follower] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._live: Any = None

    def follow(self, path: Path, label: str) -> None:
        with self._lock:
            self.followed.append(Follower(path, label))

    def forget(self, path: Path) -> None:
        """Read the file to its end and stop drawing it."""
        self._poll()
        with self._lock:
            self.followed = [f for f in self.followed if f.path != path]

    def say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text)
        else:
            print(text, file=self.stream, flush=True)

    def draw(self) -> Any:
        """The live display: two lines a run."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        lines: list[Any] = []
        for follower in [f for f in self.followed if f.step]:
            s = follower.step
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                Text(follower.label, style="bold"),
                Text(str(s.get("stage", ""))),
                ProgressBar(total=s["steps"], completed=s["step"], width=24),
                Text(f"{s['step']}/{s['steps']}"),
                Text(_left(s)),
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


def line(step: Mapping[str, Any]) -> str:
    """One step as a line of text."""
    share = 100 * step["step"] // step["steps"]
    head = f"{step.get('stage', '')} {step['step']}/{step['steps']} ({share}%)"
    return " · ".join(part for part in (head, _left(step), speed(step), figures(step)) if part)


def figures(step: Mapping[str, Any]) -> str:
    """The losses, learning rate and memory of a step."""
    terms = [
        f"{key.removeprefix('loss/')} {_number(value)}" for key, value in step.items() if key[:5] == "loss/"
    ]
    parts = [f"loss {_number(step.get('loss'))}" + (f" ({', '.join(terms)})" if terms else "")]
    if step.get("lr") is not None:
        parts.append(f"lr {step['lr']:.1e}")
    if step.get("memory_mib") is not None:
        parts.append(f"{step['memory_mib']:,.0f} MiB")
    return " · ".join(parts)


def speed(step: Mapping[str, Any]) -> str:
    rate = step.get("tokens_per_second")
    return f"{rate:,.0f} tokens/s" if rate else ""


def event(entry: Mapping[str, Any]) -> str:
    """An event as a line of text: its name and stage, its text, and what else it says."""
    name = " ".join(str(entry[key]).replace("_", " ") for key in ("event", "stage") if key in entry)
    unsaid = ("event", "stage", "text", "about")
    more = [f"{key} {_number(value)}" for key, value in entry.items() if key not in unsaid]
    return ": ".join(part for part in (name, str(entry.get("text", "")), ", ".join(more)) if part)


def _left(step: Mapping[str, Any]) -> str:
    """The time the stage still needs at its speed so far."""
    if not step.get("seconds"):
        return ""
    seconds = round(step["seconds"] / step["step"] * (step["steps"] - step["step"]))
    hours, rest = divmod(seconds, 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
    return f"{clock} left"


def _crosses(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a tenth of the stage was completed since the entry before."""
    if before.get("stage") != now.get("stage") or before.get("step", 0) > now["step"]:
        return True
    return before["step"] * PLAIN_LINES // now["steps"] < now["step"] * PLAIN_LINES // now["steps"]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "not finite" if value is None else str(value)
