"""Open a data file of any format as Rows. The survey of a large file is cached, so that it is read only once."""

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
from switchkd_cli.engine.data.parquet_file import ParquetFile, text_rows
from switchkd_cli.engine.data.rows import Parse, Rows, Survey, survey_rows
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import atomic_file
from switchkd_cli.files.hashes import cache_home, content

FORMATS = (".json", ".jsonl", ".parquet")
CACHED_ROWS = (
    20_000  # the survey of a file with this many rows or more is cached; smaller files are read in under a second
)
VERSION = 4  # of the cached survey; raise it when a check changes

Index = tuple[np.ndarray, np.ndarray]
"""(begins, ends): where the N rows begin and end in a JSON file ([N] int64 each); empty for parquet."""


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
    """Open a data file. `form` describes its rows, for a hint; large parquet files are copied to Arrow under `cache`.

    Raises UserError where the file or the image folder is missing, the file name has an unknown ending, or the file is
    not a list of rows.
    """
    folder = Path(images) if images is not None else None
    _check(file, folder, limit)
    cached_file = cache_home() / "indexes" / f"{_key(file, parse, folder, limit)}.npz"
    try:
        cached = _load(cached_file)
        index, survey = cached or _read(file, parse, folder, limit)
    except (OSError, NotRows, UnicodeDecodeError, pyarrow.ArrowException) as error:
        problem = str(error) if isinstance(error, NotRows) else f"not readable as {file.suffix[1:]}: {error}"
        raise UserError(f"{file}: {problem.splitlines()[0]}", hint=form) from error
    if not len(survey.sizes):
        raise UserError(f"{file}: holds no rows")
    if len(survey.sizes) >= CACHED_ROWS and cached is None:
        _save(cached_file, index, survey)
    raw: Any = (
        ParquetFile(file, cache / "indexes" / "arrow" / content(file), len(survey.sizes))
        if file.suffix == ".parquet"
        else JsonFile(file, *index)
    )
    return Rows(raw, parse, images=folder, follow_links=follow_links, turns=turns, name=str(file), survey=survey)


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
    """Read the whole file once."""
    begins, ends = array("q"), array("q")

    def json_rows() -> Iterator[object]:
        for begin, end, row in islice(scan(file), limit):
            begins.append(begin)
            ends.append(end)
            yield row

    rows = islice(text_rows(file), limit) if file.suffix == ".parquet" else json_rows()
    survey = survey_rows(rows, parse, images)
    return (np.array(begins, np.int64), np.array(ends, np.int64)), survey


def _key(file: Path, parse: Parse, images: Path | None, limit: int | None) -> str:
    """Return a digest of all that a survey depends on."""
    inputs = [VERSION, file.suffix, content(file), f"{parse.__module__}.{parse.__qualname__}", images is None, limit]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _save(cached_file: Path, index: Index, survey: Survey) -> None:
    """Cache index and survey. Where the folder can't be written, the file will be read again next time."""
    notes = [[*note, count] for note, count in survey.notes.items()]
    findings = json.dumps([[vars(fault) for fault in survey.faults], notes])
    arrays = {
        "begins": index[0],
        "ends": index[1],
        "sizes": survey.sizes,
        "pictured": survey.image_mask,
        "images": np.frombuffer(survey.images, np.uint8),
        "told": np.frombuffer(findings.encode(), np.uint8),
    }
    with suppress(OSError):
        cached_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(cached_file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]


def _load(cached_file: Path) -> tuple[Index, Survey] | None:
    """Return the cached index and survey; None where there are none or they can't be read."""
    try:
        with np.load(cached_file, allow_pickle=False) as arrays:
            faults, notes = json.loads(arrays["told"].tobytes())
            survey = Survey(
                arrays["sizes"],
                arrays["pictured"],
                tuple(Unusable(**fault) for fault in faults),
                arrays["images"].tobytes(),
                {(kind, what): count for kind, what, count in notes},
            )
            return (arrays["begins"], arrays["ends"]), survey
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None
