"""Digests of what a recipe names on this machine (checkpoints, data files, images): every byte of them counts.

A file is read once. Its hash is kept in the user's cache folder with the size, times and inode that the file had then,
and the file is read again when one of these differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import TYPE_CHECKING

from switchkd_cli import registry
from switchkd_cli.cores import cores
from switchkd_cli.errors import UserError
from switchkd_cli.locate import locate

if TYPE_CHECKING:
    from switchkd_cli.recipe.schema import DataSet

CACHE = "SWITCHKD_CACHE"
"""The environment variable that names another cache folder."""

YOUNG = (
    2 * 10**9
)  # ns; a file changed so shortly before it is read may change again and keep its times: hash not kept
LARGE = 2 << 30  # bytes from which on it is said that files are read
SHOWN = 5  # files named in an error

RECORD = struct.Struct("<4q32s")
"""What is kept of a file: its state (size, times of the last change of content and of anything in ns, inode) and hash."""
NO_FILE = (-1, -1, -1, -1)  # the state of what is no file that can be read
NOTHING = bytes(32)  # and its hash


class Fingerprints:
    """The digests that one command needs, each computed when it is first wanted and then remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple, str | None] = {}

    def model(self, name: str) -> str | None:
        """Of a checkpoint's folder (its card does not count), or the commit of a hub id in the hub's cache.

        None where nothing is on this machine. Raises UserError for a file that can't be read.
        """
        return self._once(("model", name), lambda: _model(name))

    def file(self, path: str) -> str:
        """Of one file. Raises UserError where it can't be read."""
        return self._once(("file", path), lambda: content(Path(path)))

    def images(self, spec: DataSet) -> str | None:
        """Of the images that a data set's usable rows name, compared as its `images_by` says.

        None where no folder of images is given, or the rows can't be read: opening the data set will say why.
        """
        named = ("images", spec.source, json.dumps(spec.parameters, sort_keys=True), spec.images_by)
        return self._once(named, lambda: _images(spec))

    def _once(self, named: tuple, compute: Callable[[], str | None]) -> str | None:
        if named not in self._known:
            self._known[named] = compute()
        return self._known[named]


def fingerprint(name: str) -> str | None:
    """A digest of what a model's name holds now: see `Fingerprints.model`."""
    return Fingerprints().model(name)


def content(file: Path) -> str:
    """A digest of a file's bytes. Raises UserError where it can't be read."""
    return _digest(file.parent, [file.name], needed=True)


def cache_home() -> Path:
    """Where hashes are kept for the next command: $SWITCHKD_CACHE, or `switchkd` in the user's cache folder."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "switchkd"


def _model(name: str) -> str | None:
    if isfile(name):
        return content(Path(name))
    try:
        where = locate(name)
    except UserError:
        return None
    if not exists(where):
        return _commit(where)
    folder = Path(where)
    files = (
        file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.name != "README.md"
    )
    names = [str(file) for file in files if not any(part.startswith(".") for part in file.parts)]
    return _digest(folder, sorted(names), needed=True)


def _commit(hub_id: str) -> str | None:
    """The commit of the snapshot in the hub's cache."""
    from huggingface_hub import snapshot_download  # half a second to import

    try:
        return Path(snapshot_download(hub_id, local_files_only=True)).name
    except (OSError, ValueError):
        return None


def _images(spec: DataSet) -> str | None:
    if spec.images_by == "names" or not any(
        isinstance(v, str) and isdir(v) for v in spec.parameters.values()
    ):
        return None
    try:
        rows = registry.resolve("source", spec.source)(cache_home(), **spec.parameters)
    except UserError:
        return None
    names = rows.survey.image_names
    if rows.images is None or not names:
        return None
    hint = "`images_by: size_and_time` in its data set compares sizes and times instead"
    return _digest(rows.images, names, by_content=spec.images_by == "content", hint=hint)


def _digest(
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
    new = [i for i, state in enumerate(states) if state != known[i][:4] and state != NO_FILE]
    if (size := sum(states[i][0] for i in new)) >= LARGE:
        once = f"{folder}: reading {len(new):,} files ({size / 1e9:,.1f} GB) once, to know them again"
        print("; ".join(filter(None, (once, hint))), file=sys.stderr, flush=True)
    hashes = [NOTHING if state == NO_FILE else hash for state, (*_, hash) in zip(states, known, strict=True)]
    began = time.time_ns()
    with ThreadPoolExecutor(cores()) as readers:
        for i, hash in zip(new, readers.map(lambda i: _sha256(f"{folder}/{names[i]}"), new), strict=True):
            hashes[i] = hash
    if new:
        settled = [NO_FILE if max(state[1:3]) > began - YOUNG else state for state in states]
        _keep(kept_in, [RECORD.pack(*state, hash) for state, hash in zip(settled, hashes, strict=True)])
    return hashes


def _sha256(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
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


def _keep(file: Path, records: Sequence[bytes]) -> None:
    """Whole or not at all; where the folder can't be written, the files are read again the next time."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(b"".join(records))
        os.replace(temporary, file)
    except OSError as error:
        print(
            f"{file.parent}: hashes can't be kept: {error.strerror}; export {CACHE}=FOLDER", file=sys.stderr
        )
