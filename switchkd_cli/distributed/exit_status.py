"""How workers report their exit, so that the launcher shows only the root cause."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from switchkd_cli.distributed.launch_config import exit_process
from switchkd_cli.distributed.signals import Stopped
from switchkd_cli.errors import CRASH, UserError

FOLDER = "SWITCHKD_EXIT_REPORTS"
"""The environment variable that names the folder of the reports; without it, none is written."""
LOST_CONTACT = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe", "TCPStore")
"""Parts of messages that say that another process has ended."""


@dataclass(frozen=True)
class ExitReport:
    """The end of process `rank`: exit code, and a user's problems and hint, a traceback or a signal's number."""

    rank: int
    at: float
    code: int
    problems: tuple[str, ...] = ()
    hint: str = ""
    text: str = ""
    signal: int | None = None
    follows: bool = False  # whether another process's end is the cause

    def error(self, world_size: int) -> BaseException:
        """The exception that ended the process."""
        if self.signal is not None:
            return Stopped(self.signal, self.text)
        if self.problems:
            return UserError(list(self.problems), self.hint, self.code)
        lines = self.text.rstrip().splitlines()
        return UserError([*lines, f"process {self.rank} of {world_size} failed; the others were ended"], code=CRASH)


@contextmanager
def report_exit() -> Iterator[None]:
    """In a process that a launcher started, report an error to it and end; elsewhere the error is raised."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        yield
        return
    try:
        yield
    except (Exception, Stopped) as error:  # noqa: BLE001 (the launcher shows it)
        exit_process(_write(error, Path(folder)))


def end_process(error: UserError) -> None:
    """End the process from any thread; the error is reported to the launcher or, without one, printed."""
    if (folder := os.environ.get(FOLDER)) is not None:
        _write(error, Path(folder))
    else:
        print("\n".join((*error.problems, f"hint: {error.hint}")), file=sys.stderr, flush=True)
    os._exit(error.code)


def read_reports(folder: Path) -> list[ExitReport]:
    """All reports, root causes before their consequences, each group in order of time."""
    reports = [ExitReport(**json.loads(file.read_text(encoding="utf-8"))) for file in folder.glob("*.json")]
    return sorted(reports, key=lambda report: (report.signal is not None, report.follows, report.at))


def lost_contact(error: BaseException) -> bool:
    """Whether the error is a consequence of another process's end."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST_CONTACT)


def _write(error: BaseException, folder: Path) -> int:
    """Write the report of an error. Returns the exit code."""
    rank, now = int(os.environ.get("RANK", "0")), time.time()
    if isinstance(error, UserError):
        problems = (*error.problems, *getattr(error, "__notes__", ()))
        report = ExitReport(rank, now, error.code, problems, error.hint)
    elif isinstance(error, Stopped):
        report = ExitReport(rank, now, error.code, text=error.text, signal=error.number)
    else:
        text = "".join(traceback.format_exception(error))
        report = ExitReport(rank, now, CRASH, text=text, follows=lost_contact(error))
    file = folder / f"{rank}.json"
    file.with_suffix(".part").write_text(json.dumps(asdict(report)), encoding="utf-8")
    file.with_suffix(".part").rename(file)  # complete, or not there
    return report.code
