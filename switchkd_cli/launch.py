"""Runs -> processes: in place for one run after another, or as worker processes side by side."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from switchkd_cli import console, plan, runs
from switchkd_cli.cores import cores
from switchkd_cli.errors import CRASH, INPUT, MACHINE, UserError
from switchkd_cli.forecast import Forecast, Machine
from switchkd_cli.locks import tidy
from switchkd_cli.matrix import Matrix
from switchkd_cli.occupy import check_free, occupy
from switchkd_cli.progress import Progress, progress
from switchkd_cli.recipe.run import Run

WORKER = (sys.executable, "-m", "switchkd_cli.launch")
TAIL = 15  # lines of a failed worker's output that are shown


def run_one(run: Run, root: Path, *, overwrite: bool = False) -> runs.RunFolder:
    """Train and evaluate one run in this process; a finished one is reused."""
    with occupy(root, run, overwrite=overwrite) as (folder, state):
        if state == "finished":
            console.say(f"{label(run)}: finished before, reused ({folder.path})")
            return folder
        worker = _worker()
        with progress(folder.metrics, label(run)):
            worker.work(run, folder)
            if run.config.evaluation is not None:
                worker.evaluate(run, folder)
    return folder


def run_all(
    planned: Sequence[Run], root: Path, *, jobs: int = 1, overwrite: bool = False
) -> list[runs.RunFolder]:
    """Run each, in this process or in `jobs` workers side by side. The first failure ends the rest.

    All are checked before the first starts.
    """
    plan.check(planned)
    for run in planned if not overwrite else ():
        check_free(root, run)
    if jobs == 1:
        return [run_one(run, root, overwrite=overwrite) for run in planned]
    failures = in_workers(planned, root, jobs=jobs, overwrite=overwrite, stop_at_failure=True)
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
    stop_at_failure: bool = False,
    finished: Sequence[Run] = (),
) -> list[Failure]:
    """Run each in a process of its own, `jobs` at once. Returns those that failed; the rest go on.

    Runs that are `finished` are counted as done, and their times help to foretell the end.
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
                    active.append(_start(run, root, jobs=jobs, overwrite=overwrite))
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
    return failures


def teacher_results(run: Run, root: Path) -> dict[str, Any] | None:
    """Scores of the run's teacher and of the blind and majority baselines, computed once.

    None when the recipe scores nothing.
    """
    if run.config.evaluation is None:
        return None
    known = known_teacher_results(run, root)
    if known is None:
        console.say("scoring the teacher and the baselines")
    return known or _worker().evaluate_teacher(run, root)


def known_teacher_results(run: Run, root: Path) -> dict[str, Any] | None:
    """The same, if some run computed them before."""
    return runs.scores(runs.evaluation(root, run.teacher_key))


def evaluate(model: str, root: Path, key: str, question: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Score a model, or find its scores for the same question. Returns them and their folder."""
    shared = runs.evaluation(root, key)
    with shared.build() as partial:
        if partial is None:
            console.say(f"evaluated before, reused ({shared.path})")
        else:
            results = _engine("evaluate").evaluate(model, folder=partial, sets=runs.sets(root), **question)
            runs.write_json(partial / "results.json", results)
    return runs.scores(shared), shared.path


def forecast(run: Run, machine: Machine, root: Path, made: Mapping[Path, Run]) -> Forecast:
    """What the run needs on such a machine; nothing is loaded, fetched or trained."""
    return _engine("plan").forecast(run, machine, root, made)


def models() -> Any:
    """What asks the saved models of finished runs for a picture; the engine is imported when it is first asked."""
    return _Models()


class _Models:
    def position(self, folder: runs.RunFolder) -> Any:
        return _engine("illustrate").position(folder)

    def questions(self, folders: Sequence[runs.RunFolder]) -> Any:
        return _engine("illustrate").questions(folders)


def label(run: Run) -> str:
    return f"{run.title} (seed {run.seed})"


def _start(run: Run, root: Path, *, jobs: int, overwrite: bool) -> _Worker:
    command = [*WORKER, "--out", str(root), *["--overwrite"] * overwrite]
    output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (the worker's)
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
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


def _worker() -> Any:
    return _engine("worker")


def _engine(module: str) -> Any:
    """A module of the engine, the heavy zone. Raises UserError when a library is not installed."""
    import importlib

    try:
        return importlib.import_module(f"switchkd_cli.engine.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("switchkd_cli"):
            raise
        raise UserError(f"{error.name} is not installed", hint="make setup", code=MACHINE) from error


def main() -> int:
    """A worker process: one run, read from standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    asked = parser.parse_args()
    try:
        run_one(Run.loads(sys.stdin.read()), asked.out, overwrite=asked.overwrite)
    except UserError as error:
        console.error(error)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
