"""Holding a path against other processes. The system lets go when the process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from switchkd_cli.errors import UserError


class InUse(Exception):
    """Another process holds the path."""


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only process inside such a block for `path`, whether it exists yet or not.

    Waits for the other one to leave, or raises InUse with `wait=False`. Parent folders are made; those that are
    empty when the block ends are removed again. Raises UserError where they can't be made.
    """
    file = path.with_name(f".{path.name}.lock")
    with tidy(path):
        stream = _locked(file, wait=wait)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            stream.close()


@contextmanager
def tidy(path: Path) -> Iterator[None]:
    """Removes the parents of `path` that are made inside the block and hold nothing when it ends."""
    new = [parent for parent in path.parents if not parent.exists()]
    try:
        yield
    finally:
        for parent in new:
            with suppress(OSError):
                parent.rmdir()


def _opened(file: Path) -> IO[str]:
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return file.open("a")
        except FileNotFoundError:
            continue  # another process removed the empty folder meanwhile
        except OSError as error:
            hint = "add --out FOLDER to write elsewhere"
            raise UserError(f"{error.filename}: {error.strerror}", hint=hint) from error


def _locked(file: Path, *, wait: bool) -> IO[str]:
    while True:
        stream = _opened(file)
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
