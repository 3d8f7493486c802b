"""Holding a path against other processes. The system lets go when the process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from switchkd_cli.errors import MACHINE, UserError

TRIES = 100  # to lock a file that others remove meanwhile: each of them does so once
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems, as they are mounted
HINT = "add --out FOLDER to write elsewhere"


class InUse(Exception):
    """Another process holds the path."""


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only process inside such a block for `path`, whether it exists yet or not.

    Waits for the other one to leave, or raises InUse with `wait=False`. Parent folders are made; those that are
    empty when the block ends are removed again. Raises UserError where they can't be made (code MACHINE where the
    system does not say why).
    """
    with tidy(path):
        stream = _locked(path.with_name(f".{path.name}.lock"), wait=wait)
        try:
            yield
        finally:
            Path(stream.name).unlink(missing_ok=True)
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


def _locked(file: Path, *, wait: bool) -> IO[str]:
    why = "its inode is never the same"
    for _ in range(TRIES):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = file.open("a")
        except FileNotFoundError as error:  # another process removed the empty folder, or there can be none
            why = f"{error.filename}: {error.strerror}"
            continue
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}", HINT) from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                return stream
        except BlockingIOError:
            stream.close()
            raise InUse(str(file)) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            stream.close()
            file.unlink(missing_ok=True)
            if error.errno not in NO_LOCKS or file.parent == Path(tempfile.gettempdir()):
                raise UserError(f"{file}: can't be locked: {error.strerror}", HINT, MACHINE) from error
            return _locked(_on_this_machine(file), wait=wait)
        stream.close()  # its last holder removed the file meanwhile: lock the new one
    raise UserError(f"{file.parent}: no file can be made and locked there ({why})", HINT, MACHINE)


@cache
def _on_this_machine(file: Path) -> Path:
    """The lock of a file whose file system has none. Processes of other machines don't see it."""
    told = f"{file.parent}: no file can be locked there: start nothing else for it on another machine"
    print(told, file=sys.stderr)
    name = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"switchkd-{os.getuid()}-{name}.lock")
