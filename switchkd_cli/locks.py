"""Holding a path against other processes. The system lets go when the process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class InUse(Exception):
    """Another process holds the path."""


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only process inside such a block for `path`, whether it exists yet or not.

    Waits for the other one to leave, or raises InUse with `wait=False`. Parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    stream = _locked(file, wait=wait)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        stream.close()


def _locked(file: Path, *, wait: bool) -> IO[str]:
    while True:
        stream = file.open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(stream.fileno()).st_ino == file.stat().st_ino:
                return stream
        except BlockingIOError:
            stream.close()
            raise InUse(str(file)) from None
        except FileNotFoundError:
            pass
        stream.close()  # its last holder removed the file meanwhile: lock the new one
