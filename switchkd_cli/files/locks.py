"""Locks between processes. The system releases a lock when its process dies, whatever the cause.

Why not the package filelock, which lmms-eval needs anyway? In 3.16, the oldest release that we allow, a waiting process
empties the lock file (so that nobody can say who holds it) and waits for ever on a file system without locks. That
release and 4.2 leave lock files behind, and 4.2 falls back to locks that outlive their process.
"""

import errno
import fcntl
import hashlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from os.path import exists  # unlike Path.exists, it raises no error
from pathlib import Path
from typing import IO

from switchkd_cli.errors import MACHINE, UserError, shown

TRIES = 100  # to lock a file that other processes remove meanwhile: each of them removes it once
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of some network file systems
HINT = "add --out FOLDER to write elsewhere"
POLL = 0.2  # seconds between two tries
TELL_AFTER = 25  # tries after which the user is told what is waited for

Tell = Callable[[str], None]
print_late: Tell = partial(print, file=sys.stderr, flush=True)


@contextmanager
def hold(path: Path, *, wait: bool = True, tell: Tell = print_late) -> Iterator[None]:
    """Be the only process in such a block for `path`, whether the path exists or not.

    Waits for another process as long as it takes, as it may train a model; after some seconds `tell` is called with its
    name. With `wait=False` raises UserError instead. Parent folders are created; those that are empty when the block ends
    are removed. Raises UserError when they can't be created (code MACHINE when nothing can be locked).
    """
    with tidy(path):
        stream = _lock(path, path.with_name(f".{path.name}.lock"), wait=wait, tell=tell)
        try:
            yield
        finally:
            Path(stream.name).unlink(missing_ok=True)
            stream.close()


@contextmanager
def tidy(path: Path) -> Iterator[None]:
    """Remove the parents of `path` that are created inside the block and are empty when it ends."""
    new = [parent for parent in path.parents if not exists(parent)]
    try:
        yield
    finally:
        for parent in new:
            with suppress(OSError):
                parent.rmdir()


def _lock(path: Path, file: Path, *, wait: bool, tell: Tell) -> IO[str]:
    """Open and lock the file, for `path`, and write this process's name into it."""
    waited = lost = 0
    while lost < TRIES:
        stream = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as unless_locked:
                stream = unless_locked.enter_context(file.open("a"))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                    with suppress(OSError):  # on a full disk
                        os.truncate(stream.fileno(), 0)
                        os.write(stream.fileno(), f"{os.getpid()} {socket.gethostname()}".encode())
                    unless_locked.pop_all()
                    return stream
            lost, reason = lost + 1, "its inode is never the same"  # its last holder removed the file meanwhile
        except BlockingIOError:
            if not wait:
                problem = f"{shown(path)}: in use by a running process: {_holder(file)}"
                raise UserError(problem, hint=f"wait for it, or {HINT}") from None
            waited += 1
            if waited == TELL_AFTER:
                tell(f"waiting for {path.name}, held by {_holder(file)}; Ctrl-C ends the wait")
            time.sleep(POLL)
        except FileNotFoundError as error:  # another process removed the file or its empty folder, or it can't exist
            lost, reason = lost + 1, f"{error.filename}: {error.strerror}"
        except OSError as error:
            if stream is None:
                raise UserError(f"{error.filename}: {error.strerror}", HINT) from error
            file.unlink(missing_ok=True)
            if error.errno not in NO_LOCKS or file.parent == Path(tempfile.gettempdir()):
                raise UserError(f"{file}: can't be locked: {error.strerror}", HINT, MACHINE) from error
            return _lock(path, _on_this_machine(file), wait=wait, tell=tell)
    raise UserError(f"{file.parent}: no file can be created and locked there ({reason})", HINT, MACHINE)


def can_lock(folder: Path) -> bool:
    """Whether files in the folder can be locked, as some libraries require."""
    with tempfile.TemporaryFile(dir=folder) as stream, suppress(OSError):
        fcntl.flock(stream, fcntl.LOCK_EX)
        return True
    return False


@cache
def _on_this_machine(file: Path) -> Path:
    """The lock file to use when a file system has no locks. Processes of other machines don't see it."""
    warning = f"{file.parent}: no file can be locked there: start nothing else for it on another machine"
    print(warning, file=sys.stderr)
    name = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"switchkd-{os.getuid()}-{name}.lock")


def _holder(file: Path) -> str:
    """The process that holds the lock, from the content of the lock file."""
    try:
        process, host = file.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "another process"
    name = f"process {process} on {host}"
    if host == socket.gethostname():
        import psutil  # seldom needed, and slow to import

        try:
            if psutil.Process(int(process)).status() == psutil.STATUS_STOPPED:
                name += f" (stopped: kill -CONT {process} lets it continue)"
        except (psutil.Error, ValueError):
            name += " (ended; processes that it started still hold it)"
    return name
