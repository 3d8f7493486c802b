"""Runs in worker processes, side by side: started, followed as one matrix, and their failures told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from switchkd_cli import console, plan, runs
from switchkd_cli.cores import cores
from switchkd_cli.errors import CRASH, INPUT, MACHINE
from switchkd_cli.launch import label, run_one
from switchkd_cli.locks import tidy
from switchkd_cli.matrix import Matrix
from switchkd_cli.occupy import check_free
from switchkd_cli.progress import Progress
from switchkd_cli.recipe.run import Run
from switchkd_cli.spread import Spread, among_others

WORKER = (sys.executable, "-m", "switchkd_cli.launch")
TAIL = 15  # lines of a failed worker's output that are shown


def run_all(
    planned: Sequence[Run], root: Path, *, jobs: int = 1, overwrite: bool = False, resume: bool = False
) -> list[runs.RunFolder]:
    """Run each, in this process or in `jobs` workers side by side. The first failure ends the rest.

    All are checked before the first starts.
    """
    plan.check(planned)
    for run in planned if not overwrite else ():
        check_free(root, run)
    if jobs == 1 or among_others():
        return [run_one(run, root, overwrite=overwrite, resume=resume) for run in planned]
    failures = in_workers(planned, root, jobs=jobs, overwrite=overwrite, resume=resume, stop_at_failure=True)
    if failures:
        show_failures(failures)
        raise SystemExit(exit_code(failures))
    return [runs.folder(root, run) for run in planned]


@dataclass(frozen=True)
class Failure:
    """A run whose worker failed, its exit code, and what it printed."""

    run: Run
    code: int
    text: str


def exit_code(failures: Sequence[Failure]) -> int:
    """What the failures have in common: the user's to mend, the machine's, or a crash."""
    codes = {failure.code for failure in failures}
    return codes.pop() if codes in ({INPUT}, {MACHINE}) else CRASH


def show_failures(failures: Sequence[Failure]) -> None:
    for failure in failures:
        console.say(f"{label(failure.run)}: failed")
        console.say("".join(f"  {line}\n" for line in failure.text.splitlines()[-TAIL:]).rstrip())


@dataclass
class _Worker:
    """A worker process and the file that takes what it prints."""

    run: Run
    process: subprocess.Popen[str]
    output: IO[str] = field(repr=False)

    def text(self) -> str:
        self.output.seek(0)
        return self.output.read()


def in_workers(
    planned: Sequence[Run],
    root: Path,
    *,
    jobs: int,
    overwrite: bool = False,
    resume: bool = False,
    stop_at_failure: bool = False,
    finished: Sequence[Run] = (),
    spread: Spread | None = None,
) -> list[Failure]:
    """Run each in a process of its own, `jobs` at once. Returns those that failed; the rest go on.

    With `spread`, each is a run in several processes. Runs that are `finished` are counted as done, and their times help to foretell the end.
    """
    waiting, active = list(planned), list[_Worker]()
    failures: list[Failure] = []
    matrix = Matrix([_row(run) for run in planned], jobs=jobs, took=_took(finished, root))
    with ExitStack() as stack:
        for run in planned:
            stack.enter_context(tidy(runs.folder(root, run).path))
        shown = stack.enter_context(Progress(matrix=matrix))
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    run = waiting.pop(0)
                    active.append(
                        _start(run, root, jobs=jobs, overwrite=overwrite, resume=resume, spread=spread)
                    )
                    metrics = runs.folder(root, run).metrics
                    matrix.start(metrics, run.config.stages[-1].name)
                    shown.follow(metrics, label(run))
                time.sleep(0.1)
                for worker in [w for w in active if w.process.poll() is not None]:
                    active.remove(worker)
                    failures += _finish(worker, root, shown, matrix)
                    if failures and stop_at_failure:
                        waiting.clear()
                        matrix.waiting.clear()
        finally:
            for worker in active:
                worker.process.terminate()
            for worker in active:
                worker.process.wait()
                shown.say(f"{label(worker.run)}: {(worker.text().splitlines() or ['ended'])[-1]}")
    return failures


def _start(
    run: Run, root: Path, *, jobs: int, overwrite: bool, resume: bool, spread: Spread | None
) -> _Worker:
    command = [*WORKER, "--out", str(root), *["--overwrite"] * overwrite, *["--resume"] * resume]
    command += spread.options if spread else []
    output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (the worker's)
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // (spread.each if spread else jobs)))}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True, env={**os.environ, **threads}
    )
    assert process.stdin is not None
    process.stdin.write(run.dumps())
    process.stdin.close()
    return _Worker(run, process, output)


def _row(run: Run) -> str:
    """What runs of one cost have in common."""
    return f"{run.recipe}/{run.row}"


def _took(finished: Sequence[Run], root: Path) -> dict[str, list[float]]:
    """The seconds of finished runs by row."""
    took: dict[str, list[float]] = {}
    for run in finished:
        took.setdefault(_row(run), []).append(runs.folder(root, run).info().get("seconds", 0.0))
    return took


def _finish(worker: _Worker, root: Path, shown: Progress, matrix: Matrix) -> list[Failure]:
    """Keep what a worker printed in its run's log, and say how it ended."""
    folder = runs.folder(root, worker.run)
    shown.forget(folder.metrics)
    text = worker.text()
    worker.output.close()
    if folder.path.exists():
        with folder.text_log.open("a", encoding="utf-8") as log:
            log.write(text)
    code = worker.process.returncode
    shown.say(f"{label(worker.run)}: {'failed' if code else 'done'} ({folder.path})")
    matrix.end(folder.metrics, failed=bool(code))
    shown.tell_matrix()
    return [Failure(worker.run, code, _told(text, code))] if code else []


def _told(text: str, code: int) -> str:
    """What a failed worker printed; one that the system ended printed nothing about it."""
    if code > 0:
        return text or f"exit code {code}"
    why = ", most likely for want of memory: fewer --jobs need less" if -code == signal.SIGKILL else ""
    return f"{text.rstrip()}\nended by signal {-code} ({signal.strsignal(-code)}){why}".lstrip()
