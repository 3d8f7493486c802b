"""Write a file or a folder whole or not at all, by one process at a time: nobody finds half of one, not even after a kill.

Also JSON, and files of JSON lines, which grow line by line: there a kill may cut the last one. Locks between processes are
released by the system when their process dies, whatever the cause.

Why not the package filelock, which lmms-eval needs anyway? In 3.16, the oldest release that we allow, a waiting process
empties the lock file (so that nobody can say who holds it) and waits for ever on a file system without locks. That
release and 4.2 leave lock files behind, and 4.2 falls back to locks that outlive their process.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from os.path import exists, isfile  # unlike Path.exists, they raise no error
from pathlib import Path
from typing import IO, Any

from switchkd_cli.errors import MACHINE, UTF8, UserError, shown


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give another name to write to; that file replaces `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode(**UTF8))


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None when it is missing or broken."""
    with suppress(OSError, ValueError, RecursionError):
        if isfile(path):  # reading a pipe would wait
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def json_lines(file: Path, *, missing_ok: bool = False, broken_ok: bool = False) -> list[Any]:
    """What each line holds. With `missing_ok` a file that isn't there has no lines.

    Raises UserError with file and line for one that can't be read; with `broken_ok` it is None.
    """
    if missing_ok and not file.is_file():
        return []
    values = [_parsed(line) for line in file.read_bytes().splitlines()]
    if None in values and not broken_ok:
        raise UserError(f"{file}:{1 + values.index(None)}: not readable as JSON")
    return values


def write_json_lines(file: Path, values: Iterable[Any]) -> None:
    write_text(file, _lines(values))


def append_json_lines(file: Path, values: Iterable[Any]) -> None:
    with file.open("a", **UTF8) as stream:
        stream.write(_lines(values))


def _lines(values: Iterable[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _parsed(line: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it replaces `path` when the block ends without an error.

    A block that moves the folder elsewhere leaves `path` as it is. One process at a time may write a path: see `hold`.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if partial.exists():
            remove_folder(path)
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Rename a folder, then remove its files: a kill in between leaves no half of it under its name."""
    gone = path.with_name(f".{path.name}.gone")
    with suppress(FileNotFoundError):
        shutil.rmtree(gone, ignore_errors=True)
        shutil.move(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk, where the file system supports it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def link_files(source: Path, target: Path, *, exclude: Collection[str] = ()) -> None:
    """Link the files of `source` into the folder `target`, except those names.

    They are copied where the file system has no hard links, or the folders are on different ones.
    """
    for path in source.iterdir():
        if path.name in exclude:
            continue
        link = target / path.name
        if path.is_dir():
            link.mkdir()
            link_files(path, link)
            continue
        try:
            os.link(path, link)
        except OSError:  # if the copy fails as well, its error says why
            shutil.copyfile(path, link)


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
