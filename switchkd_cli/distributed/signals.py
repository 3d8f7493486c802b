"""Being asked to stop: Ctrl-C, SIGTERM or SIGHUP end a training after its step, and anything else at once.

Signals belong to the whole process, and so does what is written down here.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALLED = 128  # added to a signal's number: the exit code of a process that it ended
AGAIN = 2.0  # seconds: sooner, a second signal is the same request, which reached the process and its group
GLANCE = 2.0  # seconds between two looks for a child's parent
GRACE = 10.0  # seconds that the main thread has to end by itself, once it was asked twice


class Stopped(BaseException):
    """The process was asked to end. Like KeyboardInterrupt, no `except Exception` holds it."""

    def __init__(self, number: int, text: str = "") -> None:
        self.number = number
        self.text = text
        super().__init__(text or signal.Signals(number).name)

    @property
    def code(self) -> int:
        return SIGNALLED + self.number


_asked: int | None = None
_since = 0.0  # when that was
_waiting = False  # whether the one who is asked looks for itself


def asked() -> int | None:
    """The signal that asked to stop, once one did."""
    return _asked


@contextmanager
def heeded(*, child: bool = False) -> Iterator[None]:
    """Inside, each signal raises Stopped in the main thread. A signal that is ignored (nohup) stays ignored.

    Whoever asks twice needs no main thread that listens: it may be in a call that nothing interrupts. A `child` is asked
    to stop, too, when the process that started it is no more: nobody would hear of what it does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _stop)
    read, write = os.pipe()
    os.set_blocking(write, False)
    outer = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(
        target=_watch, args=(read, os.getppid() if child else None), daemon=True, name="signals"
    ).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(write)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def later() -> Iterator[None]:
    """Inside, a signal is only written down (see `asked`); Stopped is raised where the block ends.

    Who can't wait presses Ctrl-C, or sends another signal, a second time.
    """
    global _waiting
    outer, _waiting = _waiting, True
    try:
        yield
    finally:
        _waiting = outer
    if _asked is not None and not _waiting:
        raise Stopped(_asked)


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked, _since
    if _asked is None:
        _asked, _since = number, time.monotonic()
        at_once = not _waiting
    else:
        at_once = _again(number, _since)
    if at_once:
        raise Stopped(_asked)


def _again(number: int, since: float) -> bool:
    """Whether a signal that follows one of that time asks a second time."""
    return number == signal.SIGINT or time.monotonic() - since >= AGAIN


def _watch(read: int, parent: int | None) -> None:
    """Ends the process when it was asked twice and its main thread doesn't: `read` gives each signal's number.

    Asks it to stop when it has another parent than this one.
    """
    since = None
    with os.fdopen(read, "rb", buffering=0) as stream:
        while True:
            while parent is not None and not select.select([stream], [], [], GLANCE)[0]:
                if os.getppid() != parent:
                    parent = None
                    os.kill(os.getpid(), signal.SIGTERM)
            if not (got := stream.read(1)):
                return
            number = got[0]
            if number not in SIGNALS:
                continue
            if since is None:
                since = time.monotonic()
            elif _again(number, since):
                if select.select([stream], [], [], GRACE)[0] and not stream.read(1):
                    return  # the main thread has left
                os.write(
                    2, f"stopped: {signal.Signals(number).name}, a second time: ended at once\n".encode()
                )
                os._exit(SIGNALLED + number)


def _own_signals() -> None:
    """A process that is forked off doesn't write into this one's pipe."""
    with suppress(ValueError):  # forked off by another thread
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_own_signals)
