"""Level 4: how long the program takes to say something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

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
"""Python's arguments, and the exit code that is right. The first is the yardstick."""
FULL, QUICK = Effort(7, 1), Effort(2, 1)


def measure_level(quick: bool) -> Level:
    return measure_at(COMMANDS, QUICK if quick else FULL)


def measure_at(commands: dict[str, tuple[tuple[str, ...], int]], effort: Effort) -> Level:
    variants = [Variant(name, partial(_ready, *command)) for name, command in commands.items()]
    rows = measure("processes", variants, effort)
    return Level(title="start-up: from the command to its end; memory is the process's", rows=rows)


@contextmanager
def _ready(arguments: Sequence[str], code: int) -> Iterator[Running]:
    yield Running({"process": partial(run, arguments, code)}, peak=partial(run, arguments, code))


def run(arguments: Sequence[str], code: int) -> int:
    """One process from start to end; returns the most memory that it took. Raises RuntimeError for another exit code."""
    with TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            said.seek(0)
            told = said.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{arguments}: exit code {process.returncode}, not {code}:\n{told}")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
