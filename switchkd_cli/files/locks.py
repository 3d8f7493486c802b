"""Holding a path against other processes. The system lets go when the process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import count
from os.path import exists  # unlike Path's, it raises for nothing
from pathlib import Path
from typing import IO

from switchkd_cli.errors import MACHINE, UserError

TRIES = 100  # to lock a file that others remove meanwhile: each of them does so once
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems, as they are mounted
HINT = "add --out FOLDER to write elsewhere"
GLANCE = 0.2  # seconds between two tries
TOLD = 25  # tries after which the wait is told

Tell = Callable[[str], None]
print_late: Tell = partial(print, file=sys.stderr, flush=True)


class InUse(Exception):
    """Another process holds the path: which."""


@contextmanager
def hold(path: Path, *, wait: bool = True, tell: Tell = print_late) -> Iterator[None]:
    """Be the only process inside such a block for `path`, whether it exists yet or not.

    Waits for the other one to leave, however long that takes, as it may train a model; after some seconds `tell` is told
    which it is. With `wait=False` raises InUse. Parent folders are made; those that are empty when the block ends are
    removed again. Raises UserError where they can't be made (code MACHINE where the system does not say why).
    """
    with tidy(path):
        stream = _locked(path.with_name(f".{path.name}.lock"), wait=wait, tell=tell)
        try:
            yield
        finally:
            Path(stream.name).unlink(missing_ok=True)
            stream.close()


@contextmanager
def tidy(path: Path) -> Iterator[None]:
    """Removes the parents of `path` that are made inside the block and hold nothing when it ends."""
    new = [parent for parent in path.parents if not exists(parent)]  # one that may not be looked at is none
    try:
        yield
    finally:
        for parent in new:
            with suppress(OSError):
                parent.rmdir()


def _locked(file: Path, *, wait: bool, tell: Tell) -> IO[str]:
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
            _wait(stream, file, tell) if wait else fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                _sign(stream)
                return stream
        except BlockingIOError:
            stream.close()
            raise InUse(_holder(file)) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            stream.close()
            file.unlink(missing_ok=True)
            if error.errno not in NO_LOCKS or file.parent == Path(tempfile.gettempdir()):
                raise UserError(f"{file}: can't be locked: {error.strerror}", HINT, MACHINE) from error
            return _locked(_on_this_machine(file), wait=wait, tell=tell)
        stream.close()  # its last holder removed the file meanwhile: lock the new one
    raise UserError(f"{file.parent}: no file can be made and locked there ({why})", HINT, MACHINE)


def can_lock(folder: Path) -> bool:
    """Whether a file in the folder can be locked: libraries that do so know no other way."""
    with tempfile.TemporaryFile(dir=folder) as stream, suppress(OSError):
        fcntl.flock(stream, fcntl.LOCK_EX)
        return True
    return False


@cache
def _on_this_machine(file: Path) -> Path:
    """The lock of a file whose file system has none. Processes of other machines don't see it."""
    told = f"{file.parent}: no file can be locked there: start nothing else for it on another machine"
    print(told, file=sys.stderr)
    name = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"switchkd-{os.getuid()}-{name}.lock")


def _wait(stream: IO[str], file: Path, tell: Tell) -> None:
    """Locks as soon as that is possible."""
    for look in count(1):
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if look == TOLD:
                name = file.name[1:].removesuffix(".lock")
                tell(f"waiting for {name}, held by {_holder(file)}; Ctrl-C ends the wait")
            time.sleep(GLANCE)


def _sign(stream: IO[str]) -> None:
    """Writes down who holds the lock, where there is room for it."""
    with suppress(OSError):
        os.truncate(stream.fileno(), 0)
        os.write(stream.fileno(), f"{os.getpid()} {socket.gethostname()}".encode())


def _holder(file: Path) -> str:
    """Which process holds the lock, by what it wrote there."""
    try:
        process, host = file.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "another process"
    told = f"process {process} on {host}"
    if host == socket.gethostname():
        import psutil  # heavy for what is seldom needed

        try:
            if psutil.Process(int(process)).status() == psutil.STATUS_STOPPED:
                told += f" (stopped: kill -CONT {process} lets it go on)"
        except (psutil.Error, ValueError):
            told += " (ended; what it started holds it still)"
    return told
