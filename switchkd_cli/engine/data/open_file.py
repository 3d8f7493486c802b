"""A data file of any of the formats as Rows. A large file is read through once, and what was found is kept."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from os.path import isdir, isfile
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.engine.data.json_file import JsonFile, NotRows, scan
from switchkd_cli.engine.data.parquet_file import ParquetFile, texts
from switchkd_cli.engine.data.rows import Parse, Rows, Survey, surveyed
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import atomic_file
from switchkd_cli.files.hashes import cache_home, content

FORMATS = (".json", ".jsonl", ".parquet")
KEPT = 20_000  # rows from which on a survey is kept: reading fewer again takes less than a second
VERSION = 4  # of the kept survey; raise it when a check changes

Index = tuple[np.ndarray, np.ndarray]
"""Where the N rows begin and end in a JSON file ([N] int64 each); empty for parquet."""


def open_rows(
    file: Path,
    parse: Parse,
    form: str,
    *,
    cache: Path,
    images: str | None,
    follow_links: bool,
    limit: int | None,
    turns: str,
) -> Rows:
    """The rows of a file. `form` says in a hint what they look like; copies of large files are made under `cache`.

    Raises UserError: no file, an ending that is not known, no image folder, a file that is no list of rows.
    """
    folder = Path(images) if images is not None else None
    _check(file, folder, limit)
    kept = cache_home() / "indexes" / f"{_key(file, parse, folder, limit)}.npz"
    try:
        held = _load(kept)
        index, survey = held or _read(file, parse, folder, limit)
    except (OSError, NotRows, UnicodeDecodeError, pyarrow.ArrowException) as error:
        told = str(error) if isinstance(error, NotRows) else f"not readable as {file.suffix[1:]}: {error}"
        raise UserError(f"{file}: {told.splitlines()[0]}", hint=form) from error
    if not len(survey.sizes):
        raise UserError(f"{file}: holds no rows")
    if len(survey.sizes) >= KEPT and held is None:
        _save(kept, index, survey)
    raw: Any = (
        ParquetFile(file, cache / "indexes" / "arrow" / content(file), len(survey.sizes))
        if file.suffix == ".parquet"
        else JsonFile(file, *index)
    )
    return Rows(
        raw, parse, images=folder, follow_links=follow_links, turns=turns, name=str(file), survey=survey
    )


def _check(file: Path, images: Path | None, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"limit: must be 1 or more, got {limit}")
    if not isfile(file):
        raise UserError(f"{file}: no such data file", hint="check the recipe's `data`")
    if file.suffix not in FORMATS:
        raise UserError(f"{file}: a data file's name ends in {', '.join(FORMATS)}, got {file.suffix!r}")
    if images is not None and not isdir(images):
        raise UserError(f"{images}: no such image folder", hint="check `images` in the recipe's `data`")


def _read(file: Path, parse: Parse, images: Path | None, limit: int | None) -> tuple[Index, Survey]:
    """One pass over the file."""
    begins, ends = array("q"), array("q")

    def spanned() -> Iterator[object]:
        for begin, end, row in islice(scan(file), limit):
            begins.append(begin)
            ends.append(end)
            yield row

    rows = islice(texts(file), limit) if file.suffix == ".parquet" else spanned()
    survey = surveyed(rows, parse, images)
    return (np.array(begins, np.int64), np.array(ends, np.int64)), survey


def _key(file: Path, parse: Parse, images: Path | None, limit: int | None) -> str:
    """A digest of all that a survey depends on."""
    said = [
        VERSION,
        file.suffix,
        content(file),
        f"{parse.__module__}.{parse.__qualname__}",
        images is None,
        limit,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _save(kept: Path, index: Index, survey: Survey) -> None:
    """For the next time; where the folder can't be written, the file is read through again."""
    notes = [[*note, count] for note, count in survey.notes.items()]
    told = json.dumps([[vars(fault) for fault in survey.faults], notes])
    arrays = {
        "begins": index[0],
        "ends": index[1],
        "sizes": survey.sizes,
        "pictured": survey.pictured,
        "images": np.frombuffer(survey.images, np.uint8),
        "told": np.frombuffer(told.encode(), np.uint8),
    }
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(kept) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]


def _load(kept: Path) -> tuple[Index, Survey] | None:
    """What was kept; None where nothing was, or it can't be read: the file itself can."""
    try:
        with np.load(kept, allow_pickle=False) as found:
            faults, notes = json.loads(found["told"].tobytes())
            survey = Survey(
                found["sizes"],
                found["pictured"],
                tuple(Unusable(**fault) for fault in faults),
                found["images"].tobytes(),
                {(kind, what): count for kind, what, count in notes},
            )
            return (found["begins"], found["ends"]), survey
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None
