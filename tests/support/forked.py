"""The program in a process of its own that can be harmed, without importing everything again: forked, not started."""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import deepspeed  # noqa: F401 (what children would import, each for itself: this, and what is marked so below)

from switchkd_cli import cli
from switchkd_cli.engine import run_stages  # noqa: F401
from switchkd_cli.engine.evaluation import lmms_harness  # noqa: F401
from switchkd_cli.engine.training.optimizer import check_schedules
from switchkd_cli.recipe.schema import Stage
from switchkd_cli.runs import provenance
from switchkd_cli.scheduler import pool

ANY = {
    "name": "any",
    "data": "rows",
    "train": ["language"],
    "lr": 1.0,
    "batch": 1,
    "steps": 1,
    "objective": [{"loss": "cross_entropy"}],
}
# it imports transformers' schedules
check_schedules([Stage.model_validate(ANY)])
FORK = multiprocessing.get_context("fork")
PATIENCE = 900  # seconds until something is taken to hang


@dataclass
class Program:
    """A running `switchkd`, and what it prints."""

    process: BaseProcess
    outputs: tuple[IO, IO]
    """Standard output and standard error."""
    encoding: str

    @property
    def out(self) -> str:
        return self._content(self.outputs[0])

    @property
    def err(self) -> str:
        return self._content(self.outputs[1])

    def _content(self, stream: IO) -> str:
        """What was written to a file so far; its position, where the program goes on writing, stays."""
        return os.pread(stream.fileno(), os.fstat(stream.fileno()).st_size, 0).decode(self.encoding)

    @property
    def text(self) -> str:
        """Progress and errors, then what was asked for."""
        return self.err + self.out

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
            time.sleep(0.005)
        return self


def switchkd(*words: object, cwd: Path, first: Callable[[], None] = lambda: None, encoding: str = "utf-8") -> Program:
    """Starts the program in `cwd`; `first` is called in its process before it begins."""
    cwd.mkdir(parents=True, exist_ok=True)
    outputs = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed with what is returned)
    process = FORK.Process(target=_main, args=([str(word) for word in words], cwd, outputs, first, encoding))
    process.start()
    return Program(process, outputs, encoding)


def steps(run: Path) -> int:
    """Optimiser steps that the run has logged."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"grad_norm"') if file.exists() else 0


def workers() -> None:
    """A matrix of runs forks its worker processes, too."""
    pool.subprocess = SimpleNamespace(Popen=Worker, DEVNULL=None)


class Worker:
    """What the pool asks of a worker that subprocess.Popen started."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: IO, **_: object) -> None:
        words, outputs = command[len(pool.WORKER) :], (stdout, stdout)
        self.process = FORK.Process(target=_main, args=(words, Path.cwd(), outputs, lambda: os.environ.update(env)))
        self.process.start()
        self.terminate, self.kill, self.wait = self.process.terminate, self.process.kill, self.process.join

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode


def _main(
    words: list[str], cwd: Path, outputs: tuple[IO, IO], first: Callable[[], None], encoding: str = "utf-8"
) -> None:
    os.chdir(cwd)
    for number, stream in enumerate(outputs, start=1):
        os.dup2(stream.fileno(), number)
    sys.stdout = open(1, "w", closefd=False, encoding=encoding)  # noqa: SIM115 (pytest's own stands there)
    sys.stderr = open(2, "w", closefd=False, encoding=encoding)  # noqa: SIM115
    sys.argv = ["switchkd", *words]
    provenance.commit = lambda: "tested"  # whoever commits while the tests run changes no program
    first()
    cli.main()
