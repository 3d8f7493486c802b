"""Worker processes side by side, followed as one matrix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from switchkd_cli.distributed.cpu_cores import cores
from switchkd_cli.distributed.launch_config import Spread, among_others, leads
from switchkd_cli.errors import UserError
from switchkd_cli.files.locks import tidy
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import provenance, run_folder
from switchkd_cli.runs.claim import check_free, is_finished
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.failures import Failure, exit_code, show_failures
from switchkd_cli.scheduler.jobs import Entry, different, scorings
from switchkd_cli.scheduler.launch import known_teacher_results, run_one, take_over
from switchkd_cli.terminal import console
from switchkd_cli.terminal.progress import Progress
from switchkd_cli.terminal.time_left import Matrix

WORKER = (sys.executable, "-m", "switchkd_cli.scheduler.launch")


def run_all(
    planned: Sequence[Run], root: Path, *, jobs: int = 1, overwrite: bool = False, resume: bool = False
) -> list[run_folder.RunFolder]:
    """Run each, in this process or in `jobs` workers side by side. The first failure ends the rest.

    All are checked before the first starts.
    """
    launch.check(planned)
    for run in planned if not overwrite else ():
        check_free(root, run)
    if jobs == 1 or among_others():
        if overwrite and leads():
            run_folder.set_stages_aside(root, planned)
        return [run_one(run, root, overwrite=overwrite, resume=resume) for run in planned]
    failures = in_workers(planned, root, jobs=jobs, overwrite=overwrite, resume=resume, stop_at_failure=True)
    if failures:
        show_failures(failures)
        raise SystemExit(exit_code(failures))
    return [run_folder.folder(root, run) for run in planned]


def apart(planned: Sequence[Run], spread: Spread) -> None:
    """The same command in every process of the spread, once it is known to make sense.

    Keys are computed here first: the processes then find the hashes of all files.
    """
    launch.check(planned)
    preflight.check_shared(planned, spread.count)
    for run in planned:
        _ = run.key
    launch.apart(["-m", "switchkd_cli", *sys.argv[1:]], spread)


def in_workers(
    planned: Sequence[Run],
    root: Path,
    *,
    jobs: int,
    overwrite: bool = False,
    resume: bool = False,
    stop_at_failure: bool = False,
    taught: Sequence[Run] = (),
    spread: Spread | None = None,
) -> list[Failure]:
    """Run what is not finished, each in a process of its own, `jobs` at once. Returns what failed; the rest go on.

    What is one run under several names is trained and scored once. The teachers of `taught` and the baselines are
    scored at the end, if any run came so far. What is finished counts as done, and its times help to foretell the end.
    With `spread`, each is a run in several processes.
    """
    if overwrite:
        run_folder.set_stages_aside(root, planned)
    failures, waiting, took = _sorted_out(planned, taught, root, overwrite=overwrite)
    active: list[_Worker] = []
    matrix = Matrix([entry.cost for entry in waiting], jobs=jobs, took=took)
    with ExitStack() as stack:
        for run in planned:
            stack.enter_context(tidy(run_folder.folder(root, run).path))
        shown = stack.enter_context(Progress(matrix=matrix))
        try:
            while waiting or active:
                in_vain = not active and waiting[0].scoring and not matrix.done
                if in_vain or (failures and stop_at_failure):
                    waiting.clear()
                    matrix.waiting.clear()
                while waiting and len(active) < jobs and (matrix.done or not waiting[0].scoring):
                    entry = waiting.pop(0)
                    worker = _start(entry, root, jobs=jobs, overwrite=overwrite, resume=resume, spread=spread)
                    active.append(worker)
                    matrix.start(worker.metrics, entry.run.config.stages[-1].name)
                    idle = {"idle": "being scored"} if entry.scoring else {}
                    shown.follow(worker.metrics, entry.name, **idle)
                time.sleep(0.1)
                for worker in [w for w in active if w.process.poll() is not None]:
                    active.remove(worker)
                    failures += _finish(worker, root, shown, matrix, overwrite=overwrite)
        finally:
            for worker in active:
                worker.process.terminate()
            try:
                for worker in active:
                    worker.process.wait()
                    shown.say(f"{worker.entry.name}: {(worker.text().splitlines() or ['ended'])[-1]}")
            except BaseException:  # asked a second time
                for worker in active:
                    worker.process.kill()
                raise
    return failures


def _sorted_out(
    planned: Sequence[Run], taught: Sequence[Run], root: Path, *, overwrite: bool
) -> tuple[list[Failure], list[Entry], dict[str, list[float]]]:
    """What can't be reused, what is to be done, and the seconds of what is done already."""
    before = 0 if overwrite else sum(is_finished(root, run) for run in planned)
    if before:
        console.say(f"{before} of {len(planned)} runs finished before, reused: {planned[0].compared}")
    made = {} if overwrite else run_folder.by_key(root)
    failures: list[Failure] = []
    waiting: list[Entry] = []
    took: dict[str, list[float]] = {}
    for entry in different(planned):
        if (source := made.get(entry.run.key)) is None:
            waiting.append(entry)
        else:
            took.setdefault(entry.cost, []).append(source.info().get("seconds", 0.0))
            failures += _named(entry, source, root, console.say)
    waiting += [entry for entry in scorings(taught) if known_teacher_results(entry.run, root) is None]
    return failures, waiting, took


def _named(
    entry: Entry,
    source: run_folder.RunFolder,
    root: Path,
    say: Callable[[str], None],
    *,
    overwrite: bool = False,
) -> list[Failure]:
    """The finished run in `source` under each of its names that is not finished. Returns those that can't be."""
    failures = []
    for run in entry.runs:
        place = run_folder.folder(root, run).place
        if place == source.place or (is_finished(root, run) and not overwrite):
            continue
        try:
            take_over(run, source, root, overwrite=overwrite)
            say(f"{place}: the same run as {source.place}, reused")
        except UserError as error:
            failures.append(Failure.of(Entry(place, (run,)), error))
    return failures


@dataclass
class _Worker:
    """A worker process, the file that takes what it prints, and where its steps are logged."""

    entry: Entry
    process: subprocess.Popen[str]
    output: IO[str] = field(repr=False)
    metrics: Path

    def text(self) -> str:
        self.output.seek(0)
        return self.output.read()


def _start(
    entry: Entry, root: Path, *, jobs: int, overwrite: bool, resume: bool, spread: Spread | None
) -> _Worker:
    run = entry.run
    command = [*WORKER, "--out", str(root), *["--overwrite"] * overwrite, *["--resume"] * resume]
    command += ["--teacher"] if entry.scoring else spread.options if spread else []
    output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (the worker's)
    told = {
        "OMP_NUM_THREADS": str(max(1, cores() // (spread.each if spread else jobs))),
        provenance.COMMAND: json.dumps(provenance.command()),
        "PYTHONIOENCODING": "utf-8",  # what it prints is read back from a file
    }
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True, env={**os.environ, **told}
    )
    assert process.stdin is not None
    process.stdin.write(run.dumps())
    process.stdin.close()
    scores = run_folder.evaluation(root, run.teacher_key).path
    metrics = scores.with_suffix(".jsonl") if entry.scoring else run_folder.folder(root, run).metrics
    return _Worker(entry, process, output, metrics)


def _finish(
    worker: _Worker, root: Path, shown: Progress, matrix: Matrix, *, overwrite: bool
) -> list[Failure]:
    """Keep what a worker printed in its run's log, say how it ended, and give what it made its other names."""
    entry, code, text = worker.entry, worker.process.returncode, worker.text()
    shown.forget(worker.metrics)
    worker.output.close()
    folder = run_folder.folder(root, entry.run)
    if folder.path.exists() and not entry.scoring:
        with folder.text_log.open("a", encoding="utf-8") as log:
            log.write(text)
    where = "" if entry.scoring else f" ({folder.path})"
    shown.say(f"{entry.name}: {'failed' if code else 'done'}{where}")
    if code:
        failures = [Failure(entry, code, _told(text, code))]
    else:
        failures = _named(entry, folder, root, shown.say, overwrite=overwrite)
    matrix.end(worker.metrics, failed=bool(code))
    shown.tell_matrix()
    return failures


def _told(text: str, code: int) -> str:
    """What a failed worker printed; one that the system ended printed nothing about it."""
    if code > 0:
        return text or f"exit code {code}"
    why = ", most likely for want of memory: fewer --jobs need less" if -code == signal.SIGKILL else ""
    return f"{text.rstrip()}\nended by signal {-code} ({signal.strsignal(-code)}){why}".lstrip()
