"""Hashes of files, cached for the next command: a file is read once, and again after a change.

The cache holds each file's hash and its size, times and inode at that time; when one of these differs, the file is read
again.
"""

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
from typing import Any

from switchkd_cli.distributed.launch_config import cores
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import hold, write_bytes

CACHE = "SWITCHKD_CACHE"
"""The environment variable that names another cache folder."""

YOUNG = 2 * 10**9
"""A file that changed less than this many ns before it was read is read again the next time: clocks are coarse."""
CHUNK = 256  # files that a thread reads at a time
LARGE = 2 << 30  # bytes from which on reading is announced
SHOWN = 5  # files named in an error

RECORD = struct.Struct("<4q32s")
"""A cached file: its state (size, mtime and ctime in ns, inode) and its hash."""
NO_FILE = (-1, -1, -1, -1)  # the state of a path that is no readable file
NOTHING = bytes(32)  # and its hash


def content(file: Path) -> str:
    """A digest of a file's bytes. Raises UserError when it can't be read."""
    return digest_of(file.parent, [file.name], needed=True)


def cache_home() -> Path:
    """The folder of cached hashes: $SWITCHKD_CACHE, or `switchkd` in the user's cache folder."""
    if folder := os.environ.get(CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "switchkd"


def digest_of(
    folder: Path, names: Sequence[str], *, by_content: bool = True, needed: bool = False, hint: str = ""
) -> str:
    """A digest of files under a folder: of their names, and their contents or else their sizes and mtimes.

    A file that can't be read counts as absent, or with `needed` raises UserError.
    """
    states = [_state(f"{folder}/{name}") for name in names]
    parts: list[Any] = [state[:2] for state in states]
    if by_content:
        parts = [hash.hex() for hash in _hashes(folder, names, states, hint)]
    absent = [name for name, part in zip(names, parts, strict=True) if part in (NO_FILE[:2], NOTHING.hex())]
    if needed and absent:
        raise UserError([f"{folder}/{name}: not readable" for name in absent[:SHOWN]])
    return hashlib.sha256(json.dumps([names, parts]).encode()).hexdigest()


def _state(path: str) -> tuple[int, int, int, int]:
    with suppress(OSError, ValueError):
        about = os.stat(path)
        if stat.S_ISREG(about.st_mode):  # reading a pipe would wait
            return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino
    return NO_FILE


def _hashes(folder: Path, names: Sequence[str], states: Sequence[tuple], hint: str) -> list[bytes]:
    """Each file's hash, from the cache or from reading it; NOTHING for a path that is no readable file."""
    key = hashlib.sha256(json.dumps([str(folder.absolute()), *names]).encode()).hexdigest()[:32]
    cache = cache_home() / "hashes" / key
    hashes, new = _cached(cache, states)
    if not new:
        return hashes
    with ExitStack() as lock:
        with suppress(UserError):  # without a lock, several processes may read the same files
            lock.enter_context(hold(cache))
        hashes, new = _cached(cache, states)  # another process may have read them meanwhile
        if (size := sum(states[i][0] for i in new)) >= LARGE:
            once = f"{folder}: reading {len(new):,} files ({size / 1e9:,.1f} GB) once, to know them again"
            print("; ".join(filter(None, (once, hint))), file=sys.stderr, flush=True)
        began = time.time_ns()
        groups = [new[i : i + CHUNK] for i in range(0, len(new), CHUNK)]
        with ThreadPoolExecutor(cores()) as readers:
            read = readers.map(lambda group: [_read(f"{folder}/{names[i]}") for i in group], groups)
            for i, hash in zip(new, chain.from_iterable(read), strict=True):
                hashes[i] = hash
        known = [(state, hash) for state, hash in zip(states, hashes, strict=True) if max(state[1:3]) <= began - YOUNG]
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cache, b"".join(RECORD.pack(*state, hash) for state, hash in known))
        except OSError as error:  # the files are read again the next time
            where = f"{cache.parent}: hashes can't be cached: {error.strerror}"
            print(f"{where}; export {CACHE}=FOLDER", file=sys.stderr)
    return hashes


def short_hash(value: Any) -> str:
    """A hash of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def sha256(path: str | Path) -> bytes:
    """The SHA-256 digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _read(path: str) -> bytes:
    with suppress(OSError):
        return sha256(path)
    return NOTHING


def _cached(file: Path, states: Sequence[tuple]) -> tuple[list[bytes], list[int]]:
    """The hash of each file that has not changed since it was read, else NOTHING; and which files are to be read."""
    known: dict[tuple, bytes] = {}
    with suppress(OSError, struct.error):
        known = {one[:4]: one[4] for one in RECORD.iter_unpack(file.read_bytes())}
    hashes = [known.get(state, NOTHING) for state in states]
    return hashes, [i for i, state in enumerate(states) if hashes[i] == NOTHING and state != NO_FILE]
