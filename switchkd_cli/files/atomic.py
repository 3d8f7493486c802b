"""Write a file or a folder whole or not at all, so that nobody finds half of one, not even after a kill.

Also JSON, and files of JSON lines, which grow line by line: there a kill may cut the last one.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from os.path import isfile
from pathlib import Path
from typing import Any

from switchkd_cli.errors import UTF8, UserError


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
