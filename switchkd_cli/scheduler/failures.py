"""What failed in a matrix of runs, and what the user is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from switchkd_cli.errors import CRASH, INPUT, MACHINE, UserError
from switchkd_cli.scheduler.jobs import Entry
from switchkd_cli.terminal import console

TAIL = 15  # lines of a failed worker's output that are shown


@dataclass(frozen=True)
class Failure:
    """What was not done, the exit code of it, and what was printed."""

    entry: Entry
    code: int
    text: str

    @classmethod
    def of(cls, entry: Entry, error: UserError) -> Failure:
        """A failure that has no process of its own."""
        hint = (f"hint: {error.hint}",) if error.hint else ()
        return cls(entry, error.code, "\n".join((*error.problems, *hint)))


def exit_code(failures: Sequence[Failure]) -> int:
    """What the failures have in common: the user's to mend, the machine's, or a crash."""
    codes = {failure.code for failure in failures}
    return codes.pop() if codes in ({INPUT}, {MACHINE}) else CRASH


def show_failures(failures: Sequence[Failure]) -> None:
    for failure in failures:
        console.say(f"{failure.entry.name}: failed")
        console.say("".join(f"  {line}\n" for line in failure.text.splitlines()[-TAIL:]).rstrip())
        if others := [f"{run.recipe}/{run.row}" for run in failure.entry.runs[1:]]:
            console.say(f"  and so did the same run under other names: {', '.join(others)}")


def count(failures: Sequence[Failure]) -> int:
    """The runs among them, each under all its names."""
    return sum(len(failure.entry.runs) for failure in failures if not failure.entry.scoring)
