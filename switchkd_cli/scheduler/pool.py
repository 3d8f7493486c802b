"""A pool of worker processes that work through a matrix of runs."""

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
from switchkd_cli.distributed.launch_config import LaunchConfig
from switchkd_cli.errors import UserError
from switchkd_cli.files.locks import tidy
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import provenance, run_folder
from switchkd_cli.runs.claim import is_finished
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.failures import Failure
from switchkd_cli.scheduler.jobs import Job, scoring_jobs, unique_jobs
from switchkd_cli.terminal import console
from switchkd_cli.terminal.progress import Progress
from switchkd_cli.terminal.time_left import Matrix

WORKER = (sys.executable, "-m", "switchkd_cli.scheduler.launch")


def relaunch(planned: Sequence[Run], config: LaunchConfig) -> None:
    """Start this command again in every process of `config`, after its runs are checked.

    Keys are computed here first, so that the processes find the hashes of all files.
    """
    launch.check(planned)
    preflight.check_batches(planned, config.world_size)
    for run in planned:
        _ = run.key
    launch.start_processes(["-m", "switchkd_cli", *sys.argv[1:]], config)


def in_workers(
    planned: Sequence[Run],
    root: Path,
    *,
    jobs: int,
    overwrite: bool = False,
    resume: bool = False,
    stop_at_failure: bool = False,
    score_teachers_of: Sequence[Run] = (),
    config: LaunchConfig | None = None,
) -> list[Failure]:
    """Do every unfinished run in a worker process, `jobs` at the same time. Returns the failures; other runs continue.

    A run with several names is trained and scored once. Teachers and baselines are scored last, if any run succeeded.
    Finished runs count as done, and their times help to estimate the end. With `config`, each run trains in several
    processes.
    """
    if overwrite:
        run_folder.set_stages_aside(root, planned)
    failures, waiting, seconds = _queue(planned, score_teachers_of, root, overwrite=overwrite)
    active: list[_Worker] = []
    matrix = Matrix([job.cost_group for job in waiting], jobs=jobs, took=seconds)
    with ExitStack() as stack:
        for run in planned:
            stack.enter_context(tidy(run_folder.folder(root, run).path))
        display = stack.enter_context(Progress(matrix=matrix))
        try:
            while waiting or active:
                nothing_to_score = not active and waiting[0].scoring and not matrix.done
                if nothing_to_score or (failures and stop_at_failure):
                    waiting.clear()
                    matrix.waiting.clear()
                while waiting and len(active) < jobs and (matrix.done or not waiting[0].scoring):
                    job = waiting.pop(0)
                    worker = _start(job, root, jobs=jobs, overwrite=overwrite, resume=resume, config=config)
                    active.append(worker)
                    matrix.start(worker.metrics, job.run.config.stages[-1].name)
                    idle = {"idle": "being scored"} if job.scoring else {}
                    display.follow(worker.metrics, job.name, **idle)
                time.sleep(0.1)
                for worker in [w for w in active if w.process.poll() is not None]:
                    active.remove(worker)
                    failures += _finish(worker, root, display, matrix, overwrite=overwrite)
        finally:
            for worker in active:
                worker.process.terminate()
            try:
                for worker in active:
                    worker.process.wait()
                    display.say(f"{worker.job.name}: {(worker.text().splitlines() or ['ended'])[-1]}")
            except BaseException:  # a second stop signal
                for worker in active:
                    worker.process.kill()
                raise
    return failures


def _queue(
    planned: Sequence[Run], score_teachers_of: Sequence[Run], root: Path, *, overwrite: bool
) -> tuple[list[Failure], list[Job], dict[str, list[float]]]:
    """Failures to reuse a finished run, the jobs that are left, and the seconds of finished jobs by cost group."""
    finished = 0 if overwrite else sum(is_finished(root, run) for run in planned)
    if finished:
        console.say(f"{finished} of {len(planned)} runs finished before, reused: {planned[0].compared}")
    sources = {} if overwrite else run_folder.by_key(root)
    failures: list[Failure] = []
    waiting: list[Job] = []
    seconds: dict[str, list[float]] = {}
    for job in unique_jobs(planned):
        if (source := sources.get(job.run.key)) is None:
            waiting.append(job)
        else:
            seconds.setdefault(job.cost_group, []).append(source.info().get("seconds", 0.0))
            failures += _reuse(job, source, root, console.say)
    waiting += [job for job in scoring_jobs(score_teachers_of) if launch.known_teacher_results(job.run, root) is None]
    return failures, waiting, seconds


def _reuse(
    job: Job, source: run_folder.RunFolder, root: Path, say: Callable[[str], None], *, overwrite: bool = False
) -> list[Failure]:
    """Reuse the finished run in `source` under each of the job's names that is not finished. Returns failures."""
    failures = []
    for run in job.runs:
        place = run_folder.folder(root, run).place
        if place == source.place or (is_finished(root, run) and not overwrite):
            continue
        try:
            launch.take_over(run, source, root, overwrite=overwrite)
            say(f"{place}: the same run as {source.place}, reused")
        except UserError as error:
            failures.append(Failure.of(Job(place, (run,)), error))
    return failures


@dataclass
class _Worker:
    """A worker process, the file with its output, and the file in which its steps are logged."""

    job: Job
    process: subprocess.Popen[str]
    output: IO[str] = field(repr=False)
    metrics: Path

    def text(self) -> str:
        self.output.seek(0)
        return self.output.read()


def _start(job: Job, root: Path, *, jobs: int, overwrite: bool, resume: bool, config: LaunchConfig | None) -> _Worker:
    run = job.run
    command = [*WORKER, "--out", str(root), *["--overwrite"] * overwrite, *["--resume"] * resume]
    command += ["--teacher"] if job.scoring else config.options if config else []
    output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (the worker's)
    variables = {
        "OMP_NUM_THREADS": str(max(1, cores() // (config.per_node if config else jobs))),
        provenance.COMMAND: json.dumps(provenance.command()),
        "PYTHONIOENCODING": "utf-8",  # the output is read back from a file
    }
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True, env={**os.environ, **variables}
    )
    assert process.stdin is not None
    process.stdin.write(run.dumps())
    process.stdin.close()
    scores = run_folder.evaluation(root, run.teacher_key).path
    metrics = scores.with_suffix(".jsonl") if job.scoring else run_folder.folder(root, run).metrics
    return _Worker(job, process, output, metrics)


def _finish(worker: _Worker, root: Path, display: Progress, matrix: Matrix, *, overwrite: bool) -> list[Failure]:
    """Save the worker's output in its run's log, say how it ended, and reuse its run under its other names."""
    job, code, text = worker.job, worker.process.returncode, worker.text()
    display.forget(worker.metrics)
    worker.output.close()
    folder = run_folder.folder(root, job.run)
    if folder.path.exists() and not job.scoring:
        with folder.text_log.open("a", encoding="utf-8") as log:
            log.write(text)
    where = "" if job.scoring else f" ({folder.path})"
    display.say(f"{job.name}: {'failed' if code else 'done'}{where}")
    if code < 0:  # ended by the system, without a word of its own
        why = ", most likely out of memory: fewer --jobs need less" if -code == signal.SIGKILL else ""
        text = f"{text.rstrip()}\nended by signal {-code} ({signal.strsignal(-code)}){why}".lstrip()
    if code:
        failures = [Failure(job, code, text or f"exit code {code}")]
    else:
        failures = _reuse(job, folder, root, display.say, overwrite=overwrite)
    matrix.end(worker.metrics, failed=bool(code))
    display.tell_matrix()
    return failures
