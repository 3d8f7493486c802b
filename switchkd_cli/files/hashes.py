"""Hashes of files, kept for the next command: a file is read once, and again when it has changed.

What is kept is a hash and, next to it, the size, times and inode that the file had; a file is read again when one of
these differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

from switchkd_cli.distributed.cpu_cores import cores
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_bytes
from switchkd_cli.files.locks import hold

CACHE = "SWITCHKD_CACHE"
"""The environment variable that names another cache folder."""

YOUNG = 2 * 10**9
"""A file that changed less than so many ns before it is read is read again the next time: clocks are coarse."""
TOGETHER = 256  # files that a thread reads at a time
LARGE = 2 << 30  # bytes from which on it is said that files are read
SHOWN = 5  # files named in an error

RECORD = struct.Struct("<4q32s")
"""What is kept of a file: its state (size, times of the last change of content and of anything in ns, inode) and hash."""
NO_FILE = (-1, -1, -1, -1)  # the state of what is no file that can be read
NOTHING = bytes(32)  # and its hash


def content(file: Path) -> str:
    """A digest of a file's bytes. Raises UserError where it can't be read."""
    return digest_of(file.parent, [file.name], needed=True)


def cache_home() -> Path:
    """Where hashes are kept for the next command: $SWITCHKD_CACHE, or `switchkd` in the user's cache folder."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "switchkd"


def digest_of(
    folder: Path, names: Sequence[str], *, by_content: bool = True, needed: bool = False, hint: str = ""
) -> str:
    """Of the files of these names under a folder, by content or else by size and time of change.

    A file that can't be read counts as absent, or with `needed` raises UserError.
    """
    states = [_state(f"{folder}/{name}") for name in names]
    held = _hashes(folder, names, states, hint) if by_content else [state[:2] for state in states]
    absent = [name for name, each in zip(names, held, strict=True) if each in (NOTHING, NO_FILE[:2])]
    if needed and absent:
        raise UserError([f"{folder}/{name}: not readable" for name in absent[:SHOWN]])
    told = [each.hex() if isinstance(each, bytes) else each for each in held]
    return hashlib.sha256(json.dumps([names, told]).encode()).hexdigest()


def _state(path: str) -> tuple[int, int, int, int]:
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return NO_FILE
    if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
        return NO_FILE
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def _hashes(folder: Path, names: Sequence[str], states: Sequence[tuple], hint: str) -> list[bytes]:
    """Each file's hash, as it was kept or read now; NOTHING where there is no file that can be read."""
    named = hashlib.sha256(json.dumps([str(folder.absolute()), *names]).encode()).hexdigest()[:32]
    kept_in = cache_home() / "hashes" / named
    known = _kept(kept_in, len(names))
    if any(state != one[:4] for state, one in zip(states, known, strict=True)):
        with ExitStack() as alone:
            with suppress(UserError):  # where no lock can be had, several processes may read the same files
                alone.enter_context(hold(kept_in))
            return _renewed(folder, names, states, kept_in, hint)
    return [hash for *_, hash in known]


def _renewed(
    folder: Path, names: Sequence[str], states: Sequence[tuple], kept_in: Path, hint: str
) -> list[bytes]:
    """The same, after reading those that are new or changed; what is found is kept."""
    known = _kept(kept_in, len(names))
    new = [i for i, state in enumerate(states) if state != known[i][:4] and state != NO_FILE]
    if (size := sum(states[i][0] for i in new)) >= LARGE:
        once = f"{folder}: reading {len(new):,} files ({size / 1e9:,.1f} GB) once, to know them again"
        print("; ".join(filter(None, (once, hint))), file=sys.stderr, flush=True)
    hashes = [NOTHING if state == NO_FILE else hash for state, (*_, hash) in zip(states, known, strict=True)]
    began = time.time_ns()
    groups = [new[i : i + TOGETHER] for i in range(0, len(new), TOGETHER)]
    with ThreadPoolExecutor(cores()) as readers:
        read = chain.from_iterable(readers.map(lambda g: [_read(f"{folder}/{names[i]}") for i in g], groups))
        for i, hash in zip(new, read, strict=True):
            hashes[i] = hash
    records = []
    for state, hash in zip(states, hashes, strict=True):
        unsettled = max(state[1:3]) > began - YOUNG or hash == NOTHING
        records.append(RECORD.pack(*(NO_FILE if unsettled else state), hash))
    _keep(kept_in, b"".join(records))
    return hashes


def sha256(path: str | Path) -> bytes:
    """The SHA-256 digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _read(path: str) -> bytes:
    try:
        return sha256(path)
    except OSError:
        return NOTHING


def _kept(file: Path, count: int) -> list[tuple]:
    """(*state, hash) of each file as it was kept; of no file where nothing was."""
    try:
        records = file.read_bytes()
    except OSError:
        records = b""
    whole = len(records) == count * RECORD.size
    return list(RECORD.iter_unpack(records)) if whole else [(*NO_FILE, NOTHING)] * count


def _keep(file: Path, records: bytes) -> None:
    """Save the hashes. Where the folder can't be written, the files are read again the next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, records)
    except OSError as error:
        print(
            f"{file.parent}: hashes can't be kept: {error.strerror}; export {CACHE}=FOLDER", file=sys.stderr
        )
