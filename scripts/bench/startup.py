"""Level 4: how long the program takes to print something."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from scripts.bench.results import Level
from scripts.bench.rounds import Effort, Running, Variant, measure

ROOT = Path(__file__).parents[2]
PROGRAM = ("-c", "from switchkd_cli.cli import main; main()")
RECIPE = ("distill", "recipes/quickstart.yaml")
COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {
    "python -c pass": (("-c", "pass"), 0),
    'python -c "import torch"': (("-c", "import torch"), 0),
    "switchkd --help": ((*PROGRAM, "--help"), 0),
    "a wrong recipe": ((*PROGRAM, *RECIPE, "stages.distill.lrr=1"), 2),
    "--dry-run": ((*PROGRAM, *RECIPE, "--dry-run"), 0),
}
"""Python's arguments, and the expected exit code. The first is the yardstick."""
SMALL_PARENT = """
import os, sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
print("\\n", os.wait4(process, 0)[2].ru_maxrss)
"""
FULL, QUICK = Effort(7, 1), Effort(2, 1)


def measure_level(quick: bool) -> Level:
    return measure_at(COMMANDS, QUICK if quick else FULL)


def measure_at(commands: dict[str, tuple[tuple[str, ...], int]], effort: Effort) -> Level:
    variants = [Variant(name, partial(_ready, *command)) for name, command in commands.items()]
    rows = measure("processes", variants, effort)
    return Level(title="start-up: from the command to its end; memory is the process's", rows=rows)


@contextmanager
def _ready(arguments: Sequence[str], code: int) -> Iterator[Running]:
    yield Running({"process": partial(run, arguments, code)}, peak=partial(resident, arguments))


def run(arguments: Sequence[str], code: int) -> None:
    """Run one process to its end. Raises RuntimeError for another exit code, with the end of its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != code:
        output = done.stdout[-2000:].decode(errors="replace")
        raise RuntimeError(f"{arguments}: exit code {done.returncode}, not {code}:\n{output}")


def resident(arguments: Sequence[str]) -> int:
    """Return the peak memory of one process, in bytes.

    It is started from a small one: the system counts what a process's parent held when it was started as its own.
    """
    done = subprocess.run(
        [sys.executable, "-c", SMALL_PARENT, sys.executable, *arguments],
        check=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
