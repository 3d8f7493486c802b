"""Being asked to stop: Ctrl-C, SIGTERM or SIGHUP end a training after its step, and anything else at once.

Signals belong to the whole process, and so does what is written down here.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALLED = 128  # added to a signal's number: the exit code of a process that it ended


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
_waiting = False  # whether the one who is asked looks for itself


def asked() -> int | None:
    """The signal that asked to stop, once one did."""
    return _asked


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, each signal raises Stopped in the main thread. A signal that is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def later() -> Iterator[None]:
    """Inside, a signal is only written down (see `asked`); Stopped is raised where the block ends.

    Who can't wait presses Ctrl-C a second time.
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
    global _asked
    first, _asked = _asked is None, _asked or number
    at_once = not _waiting if first else number == signal.SIGINT  # a second SIGTERM lets it come to its end
    if at_once:
        raise Stopped(_asked)
