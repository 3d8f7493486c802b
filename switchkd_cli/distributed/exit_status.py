"""How workers report their exit, so that the launcher shows only the root cause."""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    """What ended a process, and when; `follows`: because another process had ended."""

    at: float
    error: UserError | Stopped
    follows: bool = False


@contextmanager
def report_exit() -> Iterator[None]:
    """In a process that a launcher started, report an error to it and end; elsewhere the error is raised."""
    try:
        yield
    except (Exception, Stopped) as error:
        if FOLDER not in os.environ:
            raise
        exit_process(report(error))


def end_process(error: UserError) -> None:
    """End the process from any thread; the error is reported to the launcher or, without one, printed."""
    if FOLDER in os.environ:
        report(error)
    else:
        print("\n".join(error.lines), file=sys.stderr, flush=True)
    os._exit(error.code)


def report(error: BaseException) -> int:
    """Write the report of this process's error, a traceback if it is a bug. Returns the exit code."""
    rank, follows = os.environ.get("RANK", "0"), lost_contact(error)
    if not isinstance(error, UserError | Stopped):
        lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
        where = f"process {rank} of {os.environ.get('WORLD_SIZE', '1')} failed; the others were ended"
        error = UserError([*lines, where], code=CRASH)
    file = Path(os.environ[FOLDER], f"{rank}.pickle")
    file.with_suffix(".part").write_bytes(pickle.dumps(ExitReport(time.time(), error, follows)))
    file.with_suffix(".part").rename(file)  # complete, or not there
    return error.code


def read_reports(folder: Path) -> list[ExitReport]:
    """All reports, root causes before their consequences, each group in order of time."""
    reports: list[ExitReport] = [pickle.loads(file.read_bytes()) for file in folder.glob("*.pickle")]
    return sorted(reports, key=lambda report: (isinstance(report.error, Stopped), report.follows, report.at))


def lost_contact(error: BaseException) -> bool:
    """Whether the error is a consequence of another process's end."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST_CONTACT)
