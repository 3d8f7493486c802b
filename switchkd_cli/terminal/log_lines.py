"""Log entries of a run, and the progress of a matrix of runs, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from switchkd_cli.terminal.time_left import Matrix, seconds_left


def line(step: Mapping[str, Any]) -> str:
    """One step as a line of text."""
    share = 100 * step["step"] // step["steps"]
    head = f"{step.get('stage', '')} {step['step']}/{step['steps']} ({share}%)"
    return " · ".join(part for part in (head, left(step), speed(step), figures(step)) if part)


def figures(step: Mapping[str, Any]) -> str:
    """The losses, learning rate and memory of a step."""
    terms = [f"{key.removeprefix('loss/')} {_number(value)}" for key, value in step.items() if key[:5] == "loss/"]
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
    """An event as a line of text: its name and stage, its text, and its other fields."""
    name = " ".join(str(entry[key]).replace("_", " ") for key in ("event", "stage") if key in entry)
    others = [
        f"{key} {_number(value)}" for key, value in entry.items() if key not in ("event", "stage", "text", "about")
    ]
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
