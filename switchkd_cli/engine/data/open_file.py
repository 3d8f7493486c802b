"""Data sources: files of rows in any format (.json, .jsonl, .parquet, .tar), and the playground.

The survey of a large file is cached, so that it is read only once.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice
from os.path import isdir, isfile
from pathlib import Path
from tarfile import TarError
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import pyarrow
from pydantic import PositiveInt
from torch.utils.data import ConcatDataset

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.engine.data import tar_file
from switchkd_cli.engine.data.json_file import JsonFile, NotRows, scan
from switchkd_cli.engine.data.parquet_file import ParquetFile, text_rows
from switchkd_cli.engine.data.rows import Parse, Rows, Survey, merged, survey_rows
from switchkd_cli.engine.data.turns import Form, form
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import atomic_file
from switchkd_cli.files.hashes import cache_home, content
from switchkd_cli.playground.training_rows import write_rows
from switchkd_cli.recipe.data_files import data_files

FORMATS = (".json", ".jsonl", ".parquet", ".tar")
CACHED_ROWS = 20_000  # the fewest rows of a file whose survey is cached; smaller files are read in under a second
VERSION = 7  # of the cached survey; raise it when a check changes


def open_rows(
    cache: Path,
    *,
    file: str | list[str],
    format: str | dict,
    images: str | None = None,
    limit: PositiveInt | None = None,
    turns: Literal["chained", "independent"] = "chained",
    follow_links: bool = False,
) -> Rows:
    """Return the rows of .json, .jsonl, .parquet and .tar files, one file after another.

    `file` is a name, a pattern or a list of these (`data_files`). `format` names one of registry.yaml, or is a `RowFormat`
    itself. `limit` takes the first rows of all. Image paths are relative to `images`; with `follow_links` symbolic links may
    lead out of that folder. Large parquet files are copied to Arrow under `cache`. Raises UserError where a file or the
    image folder is missing, a file name has an unknown ending, or a file is not a list of rows.
    """
    paths = list(map(Path, data_files(file)))
    if problems := list(_unfit(paths)):
        raise UserError(problems, hint="check the recipe's `data`")
    folder, read_as, left = image_folder(images), form(format), limit
    name = file if isinstance(file, str) else f"{paths[0]} and {len(paths) - 1:,} more files"
    opened: list[tuple[Path, Any, Survey]] = []
    for path in paths:
        if left == 0:
            break
        survey = _surveyed(path, read_as, folder, left)
        left = None if left is None else left - len(survey.sizes)
        raw: Any = JsonFile(path, survey.spans, *[tar_file.decode] * (path.suffix == ".tar"))
        if path.suffix == ".parquet":
            raw = ParquetFile(path, cache / "indexes" / "arrow" / content(path), len(survey.sizes))
        opened.append((path, raw, survey))
    fields: dict[str, Any] = {"images": folder, "follow_links": follow_links, "turns": turns, "name": name}
    if len(opened) == 1:
        return Rows(raw, read_as.row, surveyed=survey, **fields)
    labels = Labels([str(path) for path, *_ in opened], [len(survey.sizes) for *_, survey in opened])
    surveyed = merged([survey for *_, survey in opened], labels)
    raw = ConcatDataset([raw for _, raw, _ in opened])
    return Rows(raw, read_as.row, surveyed=surveyed, labels=labels, **fields)


def image_folder(images: str | None) -> Path | None:
    """Return the folder of a data set's images. Raises UserError where it is missing."""
    if images is not None and not isdir(images):
        raise UserError(f"{images}: no such image folder", hint="check `images` in the recipe's `data`")
    return None if images is None else Path(images)


@dataclass(frozen=True)
class Labels(Sequence[str]):
    """What rows of several files without an id are called: their file and their number in it."""

    files: Sequence[str]
    rows: Sequence[int]

    def __len__(self) -> int:
        return sum(self.rows)

    def __getitem__(self, index: Any) -> Any:
        ends = list(accumulate(self.rows))
        place = bisect_right(ends, index)
        return f"{self.files[place]} row {index - ends[place] + self.rows[place]}"


def _unfit(paths: Sequence[Path]) -> Iterator[str]:
    """Yield why files can't be opened."""
    if not paths:
        yield "names no data file"
    for path, times in Counter(paths).items():
        if not isfile(path):
            yield f"{path}: no such data file" if not set("*?[") & set(str(path)) else f"{path}: matches no data file"
        elif path.suffix not in FORMATS:
            yield f"{path}: a data file's name ends in {', '.join(FORMATS)}, got {path.suffix!r}"
        elif times > 1:
            yield f"{path}: named {times} times, also by patterns"


def _surveyed(path: Path, read_as: Form, images: Path | None, limit: int | None) -> Survey:
    """Return the survey of a file, cached where it is large. Raises UserError for a file without rows."""
    # all that a survey depends on
    inputs = [VERSION, path.suffix, content(path), read_as.keys.model_dump(), images is None, limit]
    try:
        survey = cached_survey(inputs, lambda: _read(path, read_as.row, images, limit))
    except (OSError, NotRows, UnicodeDecodeError, pyarrow.ArrowException, TarError) as error:
        problem = str(error) if isinstance(error, NotRows) else f"not readable as {path.suffix[1:]}: {error}"
        raise UserError(f"{path}: {problem.splitlines()[0]}", hint=read_as.keys.rows) from error
    if not len(survey.sizes):
        raise UserError(f"{path}: holds no rows")
    return survey


llava_json = partial(open_rows, format="llava")
messages = partial(open_rows, format="messages")


def playground(
    cache: Path,
    *,
    kind: Literal["captions", "questions", "instructions", "text"],
    pictures: PositiveInt,
    split: Literal["train", "validation", "test", "hard"] = "train",
    turns: PositiveInt = 8,
    seed: int = 0,
) -> Rows:
    """Return the rows of `pictures` scenes of the playground with `turns` turns each, drawn once by seed.

    Their `kind`: questions, captions, instructions or text. Each turn sees only the image and itself, as in the benchmarks.
    """
    folder = cache / "playground" / f"{kind}-{split}-{pictures}x{turns}-{seed}"
    file = write_rows(folder, kind=kind, split=split, pictures=pictures, turns=turns, seed=seed)
    images = None if kind == "text" else str(file.parent)
    return llava_json(cache, file=str(file), images=images, turns="independent")


def _read(file: Path, parse: Parse, images: Path | None, limit: int | None) -> Survey:
    """Read the whole file once."""
    if file.suffix == ".parquet":
        return survey_rows(islice(text_rows(file), limit), parse, images)
    spans = array("q")

    def json_rows() -> Iterator[object]:
        for begin, end, row in islice((tar_file.scan if file.suffix == ".tar" else scan)(file), limit):
            spans.extend((begin, end))
            yield row

    survey = survey_rows(json_rows(), parse, images)
    return replace(survey, spans=np.array(spans, np.int64).reshape(-1, 2))


def cached_survey(inputs: Sequence[object], read: Callable[[], Survey]) -> Survey:
    """Return what `read` returns, or has returned for the same inputs: it is kept where there are many rows."""
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    cached_file = cache_home() / "indexes" / f"{digest}.npz"
    if (kept := _load(cached_file)) is not None:
        return kept
    survey = read()
    if len(survey.sizes) >= CACHED_ROWS:
        _save(cached_file, survey)
    return survey


def _save(cached_file: Path, survey: Survey) -> None:
    """Cache a survey. Where the folder can't be written, the file will be read again next time."""
    notes = [[*note, count] for note, count in survey.notes.items()]
    texts = json.dumps([[vars(fault) for fault in survey.faults], notes, survey.answers, survey.answer_count])
    arrays = {name: getattr(survey, name) for name in ("sizes", "image_mask", "spans", "digests")}
    arrays["images"], arrays["texts"] = (np.frombuffer(text, np.uint8) for text in (survey.images, texts.encode()))
    with suppress(OSError):
        cached_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(cached_file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)


def _load(cached_file: Path) -> Survey | None:
    """Return the cached survey; None where there is none or it can't be read."""
    try:
        with np.load(cached_file, allow_pickle=False) as stored:
            arrays = dict(stored)
        faults, notes, answers, answer_count = json.loads(arrays.pop("texts").tobytes())
        return Survey(
            faults=tuple(Unusable(**fault) for fault in faults),
            notes={(kind, what): count for kind, what, count in notes},
            images=arrays.pop("images").tobytes(),
            answers=answers,
            answer_count=answer_count,
            **arrays,
        )
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None
