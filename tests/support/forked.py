"""The program in a process of its own that can be harmed, without importing everything again: forked, not started."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from switchkd_cli import cli
from switchkd_cli.engine import run_stages  # noqa: F401 (what every child would import)
from switchkd_cli.engine.training.optimizer import check_schedules
from switchkd_cli.recipe.schema import Stage
from switchkd_cli.runs import provenance

ANY = {
    "name": "any",
    "data": "rows",
    "train": ["language"],
    "lr": 1.0,
    "batch": 1,
    "steps": 1,
    "objective": [{"loss": "cross_entropy"}],
}
# it imports transformers' schedules and, with them, peft: seconds in each child
check_schedules([Stage.model_validate(ANY)])
FORK = multiprocessing.get_context("fork")
PATIENCE = 900  # seconds until something is taken to hang


@dataclass
class Program:
    """A running `switchkd`, and what it prints."""

    process: BaseProcess
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if "Writing model shards" not in line]

    def end(self) -> int:
        """Waits for its end and returns its exit code; minus a signal's number, if one ended it."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(self.text)
        return self.process.exitcode

    def when(self, happened: Callable[[], bool]) -> "Program":
        """Waits until something happened, or the program ended."""
        until = time.monotonic() + PATIENCE
        while self.process.is_alive() and not happened():
            if time.monotonic() > until:
                self.process.kill()
                raise TimeoutError(self.text)
            time.sleep(0.001)
        return self


def switchkd(*words: object, cwd: Path, first: Callable[[], None] = lambda: None) -> Program:
    """Starts the program in `cwd`; `first` is called in its process before it begins."""
    cwd.mkdir(parents=True, exist_ok=True)
    output = cwd / f"output-{time.monotonic_ns()}"
    process = FORK.Process(target=_main, args=([str(word) for word in words], cwd, output, first))
    process.start()
    return Program(process, output)


def steps(run: Path) -> int:
    """Optimiser steps that the run has logged."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"grad_norm"') if file.exists() else 0


def _main(words: list[str], cwd: Path, output: Path, first: Callable[[], None]) -> None:
    os.chdir(cwd)
    with output.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (pytest's own stands there)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["switchkd", *words]
    provenance.commit = lambda: "tested"  # whoever commits while the tests run changes no program
    first()
    cli.main()
