"""Print the tables of a finished benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from scripts.bench.judge import judge
from scripts.bench.results import Bench, Machine, Row, Spread

WIDTH = 132  # columns without a terminal
UNITS = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30))
MET = {True: "met", False: "not met", None: "not measured"}
HINT = "what it did meanwhile is in the times"


def console() -> Console:
    wide = Console(markup=False, emoji=False, highlight=False)
    return wide if wide.is_terminal else Console(markup=False, emoji=False, highlight=False, width=WIDTH)


def show(bench: Bench, to: Console) -> None:
    """Print the machine, the levels and the targets."""
    for line in _machine(bench):
        to.print(line)
    for level in bench.levels.values():
        to.print(f"\n{level.title} ({level.took:,.0f} s)", style="bold")
        for name, value in level.setting.items():
            to.print(f"  {name}: {value}")
        if level.failed:
            to.print(f"  failed: {level.failed}", style="red")
        for group, rows in groupby(level.rows, key=lambda row: row.group):
            to.print(_table(group, list(rows)))
    to.print(_targets(bench))


def _machine(bench: Bench) -> Iterator[str]:
    machine = bench.machine
    versions = ", ".join(f"{name} {machine.versions.get(name)}" for name in ("torch", "transformers", "switchkd"))
    yield f"bench of {bench.began}{', quick: small sizes, few repetitions' if bench.quick else ''}"
    yield f"{machine.processor}, {machine.cores} cores, {size(machine.memory_bytes)}, {machine.system}"
    on = f"on {machine.device}" + (f", {size(machine.device_bytes)}" if machine.device_bytes else "")
    settings = "".join(f", {name}={value}" for name, value in machine.environment.items())
    yield f"{on}, {machine.threads} threads{settings}"
    yield f"{versions}, commit {machine.commit or 'unknown'}"
    yield from _load(machine)


def _load(machine: Machine) -> Iterator[str]:
    loads = ", ".join(f"{load:.2f}" for load in machine.load)
    if machine.loaded:
        yield f"WARNING: the machine was at work before the start (load {loads} on {machine.cores} cores): {HINT}"
    else:
        yield f"load before the start {loads} on {machine.cores} cores"


def _table(group: str, rows: Sequence[Row]) -> Table:
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    timed, counted = any(row.seconds for row in rows), any(row.extra_bytes for row in rows)
    table = Table(title=f"{group} (x: over the first row)", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    times = ["time x", "from", "to", "time"] if timed else []
    bytes_ = ["memory x", "memory", *(["in all"] if any(row.alive_bytes for row in rows) else [])] if counted else []
    for name in (*times, *bytes_, *figures):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = {name: number(row.figures.get(name)) for name in figures} | _times(row) | _bytes(row)
        name = f"{row.name}: {row.failed}" if row.failed else row.name
        table.add_row(name, *(cells[column] for column in (*times, *bytes_, *figures)))
    return table


def _times(row: Row) -> dict[str, str]:
    """Return the ratio with its quartiles, and the median."""
    ratio: Spread | None = row.time_ratio
    quartiles = (ratio.median, ratio.low, ratio.high) if ratio else (None, None, None)
    cells = dict(zip(("time x", "from", "to"), map(number, quartiles), strict=True))
    return cells | {"time": seconds(row.seconds.median) if row.seconds else ""}


def _bytes(row: Row) -> dict[str, str]:
    return {"memory x": number(row.memory_ratio), "memory": size(row.extra_bytes), "in all": size(row.peak_bytes)}


def _targets(bench: Bench) -> Table:
    table = Table(title="\ntargets", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in ("", "asked", "measured", ""):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for judged in judge(bench):
        style = {True: "green", False: "red", None: "dim"}[judged.met]
        table.add_row(judged.target.target, judged.target.bound, number(judged.value), MET[judged.met], style=style)
    return table


def number(value: float | None) -> str:
    """Return a number with three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def size(value: int | None) -> str:
    """Return bytes in the largest unit that gives a number above one."""
    if not value:
        return "" if value is None else "0"
    unit, of = max(((unit, of) for unit, of in UNITS if value >= of), key=lambda pair: pair[1])
    return f"{value / of:.4g} {unit}"
