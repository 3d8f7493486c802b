"""A digest of what a model's name in a recipe points to on this machine."""

from __future__ import annotations

import hashlib
from os.path import exists, isfile
from pathlib import Path

from switchkd_cli.errors import UserError
from switchkd_cli.locate import locate

_SAMPLE = 1 << 20


def fingerprint(name: str) -> str | None:
    """A digest of what a checkpoint or file holds now, so that a changed one is not taken for the old one.

    Reads the first and last mebibyte of each file; a model's card is no part of what it is. None for a hub id or when
    nothing is there. Raises UserError for a file that can't be read.
    """
    try:
        path = Path(locate(name)) if not isfile(name) else Path(name)
    except UserError:
        return None
    if not exists(path):
        return None
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if _counts(p)):
        try:
            _add(digest, file, file.relative_to(path).as_posix())
        except OSError as error:
            raise UserError(f"{file}: not readable: {error.strerror}") from error
    return digest.hexdigest()


def _add(digest: hashlib._Hash, file: Path, name: str) -> None:
    size = file.stat().st_size
    digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
    with file.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        stream.seek(max(0, size - _SAMPLE))
        digest.update(stream.read(_SAMPLE))


def _counts(file: Path) -> bool:
    return file.is_file() and file.name != "README.md"
