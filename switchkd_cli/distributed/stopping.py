"""Stop signals: Ctrl-C, SIGTERM and SIGHUP end a training after its current step, and anything else at once.

Workers report why they ended, so that the launcher shows only the root cause.

Signals belong to the whole process, so the state of this module does, too.
"""

import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from switchkd_cli.distributed.launch_config import exit_process
from switchkd_cli.errors import CRASH, UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALLED = 128  # plus the signal's number: the exit code of a process that a signal ended
REPEAT_AFTER = 2.0  # seconds: an earlier second signal is the same request, sent to the process and to its group
POLL = 2.0  # seconds between two looks at a child's parent
GRACE = 10.0  # seconds that the main thread has to end by itself after a second signal
REPORTS = "SWITCHKD_EXIT_REPORTS"
"""The environment variable that names the folder of the reports; without it, none is written."""
LOST_CONTACT = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe", "TCPStore")
"""Parts of messages that say that another process has ended."""


class Stopped(BaseException):
    """A signal stopped the process. Like KeyboardInterrupt, it is not caught by `except Exception`."""

    def __init__(self, number: int, text: str = "") -> None:
        self.number = number
        self.text = text
        super().__init__(number, text)

    def __str__(self) -> str:
        return self.text or signal.Signals(self.number).name

    @property
    def code(self) -> int:
        return SIGNALLED + self.number


_signal: int | None = None  # the first stop signal
_since = 0.0  # when it came
_deferred = False  # whether the running code checks `stop_signal` itself


def stop_signal() -> int | None:
    """The stop signal that has come; None so far."""
    return _signal


@contextmanager
def stop_on_signals(*, child: bool = False) -> Iterator[None]:
    """Inside, a stop signal raises Stopped in the main thread. Signals that are ignored (nohup) stay ignored.

    A second signal ends the process even if its main thread is in a call that can't be interrupted. A `child` is also
    stopped when the process that started it has ended.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _handle)
    read, write = os.pipe()
    os.set_blocking(write, False)
    outer = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    parent = os.getppid() if child else None
    threading.Thread(target=_watch, args=(read, parent), daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(write)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a stop signal is only recorded (see `stop_signal`); Stopped is raised when the block ends.

    A second signal raises it at once.
    """
    global _deferred
    outer, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = outer
    if _signal is not None and not _deferred:
        raise Stopped(_signal)


def _handle(number: int, frame: FrameType | None) -> None:
    global _signal, _since
    if _signal is None:
        _signal, _since = number, time.monotonic()
        at_once = not _deferred
    else:
        at_once = _is_repeat(number, _since)
    if at_once:
        raise Stopped(_signal)


def _is_repeat(number: int, since: float) -> bool:
    """Whether a signal is a second request, when the first one came at `since`."""
    return number == signal.SIGINT or time.monotonic() - since >= REPEAT_AFTER


def _watch(read: int, parent: int | None) -> None:
    """End the process after a second signal that its main thread doesn't react to; `read` gives the signals' numbers.

    Sends SIGTERM to this process when `parent` is no longer its parent.
    """
    since = None
    with os.fdopen(read, "rb", buffering=0) as stream:
        while True:
            while parent is not None and not select.select([stream], [], [], POLL)[0]:
                if os.getppid() != parent:
                    parent = None
                    os.kill(os.getpid(), signal.SIGTERM)
            if not (byte := stream.read(1)):
                return
            number = byte[0]
            if number not in SIGNALS:
                continue
            if since is None:
                since = time.monotonic()
            elif _is_repeat(number, since):
                if select.select([stream], [], [], GRACE)[0] and not stream.read(1):
                    return  # the main thread has left `stop_on_signals`
                name = signal.Signals(number).name
                os.write(2, f"stopped: {name}, a second time: ended at once\n".encode())
                os._exit(SIGNALLED + number)


def _forget_pipe() -> None:
    """In a forked process: don't write into the parent's pipe."""
    with suppress(ValueError):  # forked by another thread
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_pipe)


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
        if REPORTS not in os.environ:
            raise
        exit_process(report(error))


def end_process(error: UserError) -> None:
    """End the process from any thread; the error is reported to the launcher or, without one, printed."""
    if REPORTS in os.environ:
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
    file = Path(os.environ[REPORTS], f"{rank}.pickle")
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
