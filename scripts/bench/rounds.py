"""Measure variants of the same work together: warm, in turn, several times."""

from __future__ import annotations

import gc
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.utils.benchmark import timer

from scripts.bench.allocated import peak_bytes
from scripts.bench.results import Row, Spread, with_ratios
from switchkd_cli.engine.training.oom import is_out_of_memory


@dataclass(frozen=True)
class Running:
    """A variant after its set-up: its `phases` in order are one run.

    `alive` are the bytes that stay between runs. `figures` are asked for after each timed run. `peak` takes the place of
    counting allocations where the work is another process's.
    """

    phases: Mapping[str, Callable[[], object]]
    alive: Callable[[], int] = int
    figures: Callable[[], Mapping[str, float]] = dict
    peak: Callable[[], int | None] | None = None


def uncounted() -> None:
    """A `peak` for variants whose memory does not matter."""


@dataclass(frozen=True)
class Variant:
    """`ready` sets up what a run needs and cleans up afterwards; only the phases of `Running` are measured."""

    name: str
    ready: Callable[[], AbstractContextManager[Running]]
    note: str = ""
    timed: bool = True


@dataclass(frozen=True)
class Effort:
    """A number of rounds; in each, every variant in turn is run once untimed and then `runs` times."""

    rounds: int
    runs: int


FULL, LONG, QUICK = Effort(5, 3), Effort(5, 1), Effort(2, 1)
"""`LONG` is for runs of many seconds."""


def measure(group: str, variants: Sequence[Variant], effort: Effort) -> list[Row]:
    """Return a row for each variant, in their order; the first is the yardstick.

    Memory comes first, in a run of its own that is not timed; a variant that this machine has too little memory for is
    said to have failed. Then the rounds, each beginning with another variant: a machine that becomes slower for a while
    slows all of them down, and ratios are taken round by round. The clock is that of torch.utils.benchmark, which waits
    for the device; its Timer is not used, as it has no phases and runs everything twice before each measurement.
    """
    rows = {variant.name: _counted(group, variant) for variant in variants}
    standing = [variant for variant in variants if variant.timed and not rows[variant.name].failed]
    clocked: dict[str, list[list[dict[str, float]]]] = defaultdict(list)
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(effort.rounds):
        print(f"{group}: round {number + 1} of {effort.rounds}", file=sys.stderr, flush=True)
        first = number % max(1, len(standing))
        for variant in standing[first:] + standing[:first]:
            clocked[variant.name].append(_timed(variant, effort.runs, figures[variant.name]))
    for name, rounds in clocked.items():
        phases = {phase: Spread.of([[run[phase] for run in runs] for runs in rounds]) for phase in rounds[0][0]}
        medians = {figure: statistics.median(values) for figure, values in figures[name].items()}
        seconds = Spread.of([[sum(run.values()) for run in runs] for runs in rounds])
        found = {"seconds": seconds, "phases": phases if len(phases) > 1 else {}, "figures": medians}
        rows[name] = rows[name].model_copy(update=found)
    return with_ratios(list(rows.values()))


def _counted(group: str, variant: Variant) -> Row:
    """Return the row with its memory."""
    gc.collect()
    names = {"group": group, "name": variant.name, "note": variant.note}
    try:
        with variant.ready() as running:
            _run(running)
            extra = running.peak() if running.peak else peak_bytes(lambda: _run(running))
            return Row(**names, alive_bytes=running.alive(), extra_bytes=extra)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Row(**names, failed="out of memory")
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _timed(variant: Variant, runs: int, figures: dict[str, list[float]]) -> list[dict[str, float]]:
    """Return the seconds of each run's phases."""
    gc.collect()
    found = []
    with variant.ready() as running:
        _run(running)
        for _ in range(runs):
            found.append(_run(running))
            for name, value in running.figures().items():
                figures[name].append(value)
    return found


def _run(running: Running) -> dict[str, float]:
    seconds, began = {}, timer()
    for name, phase in running.phases.items():
        phase()
        ended = timer()
        seconds[name], began = ended - began, ended
    return seconds
