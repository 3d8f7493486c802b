"""A pool of worker processes that work through jobs: planned runs, de-duplicated by key, and their teachers' scores."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from switchkd_cli.distributed.launch_config import cores
from switchkd_cli.errors import CRASH, INPUT, MACHINE, UserError
from switchkd_cli.files.atomic import tidy
from switchkd_cli.recipe.run import Run
from switchkd_cli.report.grouping import grouped
from switchkd_cli.runs import provenance, run_folder
from switchkd_cli.runs.claim import is_finished
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from switchkd_cli.terminal import console
from switchkd_cli.terminal.progress import Follower, Matrix, Progress

WORKER = (sys.executable, "-m", "switchkd_cli")
TAIL = 15  # lines of a failed worker's output that are shown


@dataclass(eq=False)
class Job(Follower):
    """The work of one worker process, as it is followed on the screen."""

    runs: tuple[Run, ...] = ()
    """One run under its several names: the first is trained and scored, the others reuse it."""
    scoring: bool = False
    """Score the first run's teacher and the baselines instead of training."""
    process: subprocess.Popen[bytes] = field(init=False, repr=False)
    output: Path = field(init=False, repr=False)

    @property
    def run(self) -> Run:
        return self.runs[0]

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Failure:
    """What failed, and why; of a worker process this is its output, with its exit code."""

    name: str
    error: UserError
    runs: Sequence[Run] = ()
    """One run under its several names; none where something else failed."""

    def show(self) -> None:
        console.say(f"{self.name}: failed")
        console.say("".join(f"  {line}\n" for line in self.error.lines[-TAIL:]).rstrip())
        if others := [f"{run.recipe}/{run.row}" for run in self.runs[1:]]:
            console.say(f"  the same run under other names failed with it: {', '.join(others)}")


def in_workers(
    planned: Sequence[Run], options: RunOptions, *, jobs: int, teachers: Sequence[Run] = (), keep_going: bool = True
) -> list[Failure]:
    """Do every unfinished run in a worker process, `jobs` at the same time. Shows and returns the failures.

    Without `keep_going`, no run starts after a failure.

    A run with several names is trained and scored once. `teachers`: runs whose teacher and baselines are scored last, if
    any run succeeded. Finished runs count as done, and their times help to estimate the end.
    """
    config = options.launch_config()  # each run trains in several processes
    failures, waiting, seconds = _queue(planned, teachers, options)
    threads = max(1, cores() // (config.per_node if config else jobs))
    matrix = Matrix(waiting, jobs=jobs, took=seconds)
    with ExitStack() as stack:
        for run in planned:
            stack.enter_context(tidy(run_folder.folder(options.out, run).path))
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="switchkd-")))
        display = stack.enter_context(Progress(matrix=matrix))
        try:
            while waiting or matrix.running:
                nothing_to_score = not matrix.running and waiting[0].scoring and not matrix.done
                if nothing_to_score or (failures and not keep_going):
                    waiting.clear()
                while waiting and len(matrix.running) < jobs and (matrix.done or not waiting[0].scoring):
                    _start(waiting[0], scratch / str(len(waiting)), options, threads)
                    matrix.start()
                time.sleep(0.1)
                for job in [job for job in matrix.running if job.process.poll() is not None]:
                    display.read()  # its last steps
                    failures += _finish(job, options, display.say)
                    matrix.end(job, failed=bool(job.process.returncode))
                    display.tell_matrix()
        finally:
            for job in matrix.running:
                job.process.terminate()
            try:
                for job in matrix.running:
                    job.process.wait()
                    display.say(f"{job.label}: {(job.text().splitlines() or ['ended'])[-1]}")
            except BaseException:  # a second stop signal
                for job in matrix.running:
                    job.process.kill()
                raise
    for failure in failures:
        failure.show()
    return failures


def _queue(
    planned: Sequence[Run], teachers: Sequence[Run], options: RunOptions
) -> tuple[list[Failure], list[Job], dict[str, list[float]]]:
    """Failures to reuse a finished run, the jobs that are left, and the seconds of finished jobs by row."""
    sources = {} if options.overwrite else run_folder.by_key(options.out)
    if finished := sum(is_finished(options.out, run) for run in planned if not options.overwrite):
        console.say(f"{finished} of {len(planned)} runs finished before, reused: {planned[0].compared}")
    failures: list[Failure] = []
    waiting: list[Job] = []
    seconds: dict[str, list[float]] = {}
    for job in unique_jobs(planned, options.out):
        if (source := sources.get(job.run.key)) is None:
            waiting.append(job)
        else:
            seconds.setdefault(job.row, []).append(source.info().get("seconds", 0.0))
            failures += _reuse(job, source, options, console.say)
    scoring = scoring_jobs(teachers, options.out)
    waiting += [job for job in scoring if run_folder.teacher_scores(options.out, job.runs) is None]
    return failures, waiting, seconds


def unique_jobs(planned: Sequence[Run], root: Path) -> list[Job]:
    """One job per key, in the order in which the keys first appear."""
    by_key = grouped((run.key, run) for run in planned)
    several = len({run.recipe for run in planned}) > 1
    return [_job(same, _prefix(same[0]) * several + same[0].name, root) for same in by_key.values()]


def scoring_jobs(runs: Iterable[Run], root: Path) -> list[Job]:
    """One job per different teacher of the runs; none for recipes without an evaluation."""
    teachers = grouped((run.teacher_key, run) for run in runs if run.config.evaluation is not None).values()
    title = "the teacher and the baselines"
    return [_job(same[:1], _prefix(same[0]) * (len(teachers) > 1) + title, root, scoring=True) for same in teachers]


def _job(runs: Sequence[Run], name: str, root: Path, *, scoring: bool = False) -> Job:
    run, last = runs[0], runs[0].config.stages[-1].name
    if scoring:
        metrics = run_folder.evaluation(root, run.teacher_key).path.with_suffix(".jsonl")
        return Job(metrics, name, "being scored", "scoring", last, runs=tuple(runs), scoring=True)
    return Job(run_folder.folder(root, run).metrics, name, row=f"{run.recipe}/{run.row}", last=last, runs=tuple(runs))


def _prefix(run: Run) -> str:
    """The recipe's name without its world, in front of a job's name when there are several recipes."""
    return f"{run.recipe.partition('@')[0]}: "


def _reuse(job: Job, source: run_folder.RunFolder, options: RunOptions, say: Callable[[str], None]) -> list[Failure]:
    """Reuse the finished run in `source` under each of the job's names that is not finished. Returns failures."""
    failures = []
    for run in job.runs:
        place = run_folder.folder(options.out, run).place
        if place == source.place or (is_finished(options.out, run) and not options.overwrite):
            continue
        try:
            launch.take_over(run, source, options)
            say(f"{place}: the same run as {source.place}, reused")
        except UserError as error:
            failures.append(Failure(place, error, [run]))
    return failures


def work(file: Path) -> None:
    """Do the job in a file, with its options: what a worker process does."""
    job, options = pickle.loads(file.read_bytes())
    if job.scoring:
        launch.engine("run_stages").evaluate_teacher(job.run, options.out)
    elif config := options.launch_config():
        launch.start_processes(config)
    else:
        launch.run_one(job.run, options)


def _start(job: Job, file: Path, options: RunOptions, threads: int) -> None:
    """Start a worker that reads its job from `file`."""
    file.write_bytes(pickle.dumps((job, options)))
    job.output = file.with_suffix(".txt")
    variables = {"OMP_NUM_THREADS": str(threads), provenance.COMMAND: json.dumps(provenance.command())}
    variables["PYTHONIOENCODING"] = "utf-8"  # the output is read back from a file
    with job.output.open("w") as stream:
        ways: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream}
        job.process = subprocess.Popen([*WORKER, "worker", str(file)], env={**os.environ, **variables}, **ways)


def _finish(job: Job, options: RunOptions, say: Callable[[str], None]) -> list[Failure]:
    """Save the worker's output in its run's log, say how it ended, and reuse its run under its other names."""
    code, text = job.process.returncode, job.text()
    folder = run_folder.folder(options.out, job.run)
    if folder.path.exists() and not job.scoring:
        with folder.text_log.open("a", encoding="utf-8") as log:
            log.write(text)
    where = "" if job.scoring else f" ({folder.path})"
    say(f"{job.label}: {'failed' if code else 'done'}{where}")
    if not code:
        return _reuse(job, folder, options, say)
    if code < 0:  # ended by the system, without a word of its own
        why = ", most likely out of memory: fewer --jobs need less" if -code == signal.SIGKILL else ""
        text = f"{text.rstrip()}\nended by signal {-code} ({signal.strsignal(-code)}){why}".lstrip()
    error = UserError(text.splitlines() or f"exit code {code}", code=code)
    return [Failure(job.label, error, () if job.scoring else job.runs)]


def check_failures(failures: Sequence[Failure], planned: Sequence[Run]) -> None:
    """Raise UserError when there are any: with the exit code that they share (INPUT or MACHINE), else CRASH."""
    if failures:
        failed = sum(len(failure.runs) for failure in failures)  # under each name
        what = f"{failed} of {len(planned)} runs failed" if failed else "not everything could be done"
        codes = {failure.error.code for failure in failures}
        code = codes.pop() if codes in ({INPUT}, {MACHINE}) else CRASH
        raise UserError(f"{what}; the same command tries again", code=code)
