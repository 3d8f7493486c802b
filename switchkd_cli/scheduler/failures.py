"""Failed jobs: their exit codes, and what the user reads about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from switchkd_cli.errors import CRASH, INPUT, MACHINE, UserError
from switchkd_cli.scheduler.jobs import Job
from switchkd_cli.terminal import console

TAIL = 15  # lines of a failed worker's output that are shown


@dataclass(frozen=True)
class Failure:
    """A job that failed, its exit code and its output."""

    job: Job
    code: int
    text: str

    @classmethod
    def of(cls, job: Job, error: UserError) -> Failure:
        """The failure of a job that has no process of its own."""
        hint = (f"hint: {error.hint}",) if error.hint else ()
        return cls(job, error.code, "\n".join((*error.problems, *hint)))


def exit_code(failures: Sequence[Failure]) -> int:
    """The exit code that all failures share (INPUT or MACHINE); CRASH when they differ."""
    codes = {failure.code for failure in failures}
    return codes.pop() if codes in ({INPUT}, {MACHINE}) else CRASH


def show_failures(failures: Sequence[Failure]) -> None:
    for failure in failures:
        console.say(f"{failure.job.name}: failed")
        console.say("".join(f"  {line}\n" for line in failure.text.splitlines()[-TAIL:]).rstrip())
        if others := [f"{run.recipe}/{run.row}" for run in failure.job.runs[1:]]:
            console.say(f"  the same run under other names failed with it: {', '.join(others)}")


def failed_runs(failures: Sequence[Failure]) -> int:
    """Number of failed runs; a run counts once for each of its names."""
    return sum(len(failure.job.runs) for failure in failures if not failure.job.scoring)
