"""Data sources: files of rows in any format (.json, .jsonl, .parquet, .tar), the playground, data sets of Hugging Face.

The survey of a large file is cached, so that it is read only once.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from os.path import isdir, isfile
from pathlib import Path
from tarfile import TarError
from tempfile import TemporaryDirectory
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import pyarrow
from torch.utils.data import ConcatDataset

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.engine.data.row_files import JsonFile, NotRows, ParquetFile, scan, shard_row
from switchkd_cli.engine.data.rows import PAIRED, Row, Rows, Survey, survey_rows
from switchkd_cli.engine.data.turns import Form, form, llava_row
from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import atomic_file, atomic_folder, hold
from switchkd_cli.files.hashes import cache_home, content, short_hash
from switchkd_cli.playground.training_rows import write_rows
from switchkd_cli.ranges import PositiveInt
from switchkd_cli.recipe.named_files import data_files
from switchkd_cli.recipe.run import digest

FORMATS = (".json", ".jsonl", ".parquet", ".tar")
ENDINGS = ", ".join(FORMATS)
CACHED_ROWS = 20_000  # the fewest rows of a file whose survey is cached; smaller files are read in under a second
VERSION = 7  # of the cached survey; raise it when a check changes
COMMIT = re.compile("[0-9a-f]{40}")
WRONG = {"yes": "no", "no": "yes", "A": "B", "B": "A"}  # of the playground's answers


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
    names = data_files(file)
    paths = list(map(Path, names))
    unfit = [f"{p}: no such data file" for p in paths if not isfile(p)]
    unknown = [p for p in paths if isfile(p) and p.suffix not in FORMATS]
    unfit += [f"{p}: a data file's name ends in {ENDINGS}, got {p.suffix!r}" for p in unknown]
    if unfit or not paths:
        raise UserError(unfit or "`file` names no data file", hint="check the recipe's `data`")
    folder, read_as = image_folder(images), form(format)
    contents = [[path.suffix, content(path)] for path in paths]
    inputs = [VERSION, contents, read_as.keys.model_dump(), images is None, limit]  # all that a survey depends on
    survey = cached_survey(inputs, lambda: _read(paths, read_as, folder, limit))
    spans = np.split(survey.spans, survey.starts[1:])
    # files after the first `limit` rows have no start
    files: list[Any] = [_open(path, rows, cache) for path, rows in zip(paths, spans, strict=False)]
    raw: Any = files[0] if len(files) == 1 else ConcatDataset(files)
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more files"
    known: dict[str, Any] = {"name": name, "files": names, "surveyed": survey}
    return Rows(raw, read_as.row, images=folder, follow_links=follow_links, turns=turns, **known)


def image_folder(images: str | None) -> Path | None:
    """Return the folder of a data set's images. Raises UserError where it is missing."""
    if images is not None and not isdir(images):
        raise UserError(f"{images}: no such image folder", hint="check `images` in the recipe's `data`")
    return None if images is None else Path(images)


def _open(path: Path, spans: np.ndarray, cache: Path) -> Any:
    """Return the rows of one file, as they are stored, to be read in any order."""
    if path.suffix == ".parquet":
        return ParquetFile(path, cache / "indexes" / "arrow" / content(path), len(spans))
    return JsonFile(path, spans, shard_row if path.suffix == ".tar" else json.loads)


def _read(paths: Sequence[Path], read_as: Form, images: Path | None, limit: int | None) -> Survey:
    """Read all files once. Raises UserError for a file that can't be read, or has no rows."""
    spans, starts = array("q"), array("q")

    def rows() -> Iterator[object]:
        for path in paths:
            starts.append(len(spans) // 2)
            for begin, end, row in scan(path):
                spans.extend((begin, end))
                yield row

    try:
        survey = survey_rows(islice(rows(), limit), read_as.row, images)
    except (OSError, NotRows, UnicodeDecodeError, pyarrow.ArrowException, TarError) as error:
        path = paths[len(starts) - 1]
        problem = str(error) if isinstance(error, NotRows) else f"not readable as {path.suffix[1:]}: {error}"
        raise UserError(f"{path}: {problem.splitlines()[0]}", hint=read_as.keys.rows) from error
    counts = np.diff([*starts, len(survey.sizes)])
    if empty := [f"{path}: holds no rows" for path, count in zip(paths, counts, strict=False) if not count]:
        raise UserError(empty)
    return replace(survey, spans=np.array(spans, np.int64).reshape(-1, 2), starts=np.array(starts, np.int64))


llava_json = partial(open_rows, format="llava")
messages = partial(open_rows, format="messages")


def playground(
    cache: Path,
    *,
    kind: Literal["captions", "questions", "instructions", "preferences"],
    pictures: PositiveInt,
    split: Literal["train", "validation", "test", "hard", "unseen"] = "train",
    turns: PositiveInt = 8,
    seed: int = 0,
) -> Rows:
    """Return the rows of `pictures` scenes of the playground with `turns` turns each, drawn once by seed.

    Each turn of a row sees only the image and itself, as in the benchmarks. A row of `preferences` is the first question of
    such a row of instructions that has a choice, with the right answer and a wrong one.
    """
    written = "instructions" if kind == "preferences" else kind
    folder = cache / "playground" / f"{written}-{split}-{pictures}x{turns}-{seed}"
    file = write_rows(folder, kind=written, split=split, pictures=pictures, turns=turns, seed=seed)
    rows = llava_json(cache, file=str(file), images=str(file.parent), turns="independent")
    if kind != "preferences":
        return rows
    surveyed = replace(rows.survey, notes={**rows.survey.notes, PAIRED: len(rows)})
    return replace(rows, parse=_preference, surveyed=surveyed)


def _preference(value: object) -> Row:
    row = llava_row(value)
    pairs = [((asked, right), (asked, WRONG[right])) for asked, right in row.exchanges if right in WRONG]
    return replace(row, exchanges=pairs[0], paired=True) if pairs else row


def cached_survey(inputs: Sequence[object], read: Callable[[], Survey]) -> Survey:
    """Return what `read` returns, or has returned for the same inputs: it is kept where there are many rows."""
    cached_file = cache_home() / "indexes" / f"{short_hash(inputs)}.npz"
    if (kept := _load(cached_file)) is not None:
        return kept
    survey = read()
    if len(survey.sizes) >= CACHED_ROWS:
        _save(cached_file, survey)
    return survey


def _save(cached_file: Path, survey: Survey) -> None:
    """Cache a survey. Where the folder can't be written, the file will be read again next time."""
    notes = [[*note, count] for note, count in survey.notes.items()]
    texts = json.dumps([[vars(fault) for fault in survey.faults], notes])
    arrays = {name: getattr(survey, name) for name in ("sizes", "image_mask", "digests", "spans", "starts")}
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
        faults, notes = json.loads(arrays.pop("texts").tobytes())
        return Survey(
            faults=tuple(Unusable(**fault) for fault in faults),
            notes={(kind, what): count for kind, what, count in notes},
            images=arrays.pop("images").tobytes(),
            **arrays,
        )
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None


def hugging_face(
    cache: Path,
    *,
    dataset: str,
    format: str | dict,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    images: str | None = None,
    limit: PositiveInt | None = None,
    turns: Literal["chained", "independent"] = "chained",
    follow_links: bool = False,
) -> Rows:
    """Return the rows of one split of a data set: a folder that `save_to_disk` wrote or that holds data files, or a hub id.

    A hub id needs its `revision`, a commit. With `streaming` only its first `limit` rows are fetched, once, and kept under
    `cache`. Other parameters: see `open_rows`. Raises UserError for what can't be opened.
    """
    here = isdir(dataset)
    if not here and not COMMIT.fullmatch(revision or ""):
        problem = f"{dataset}: no such folder; a data set of the hub needs its `revision`, a commit, got {revision!r}"
        raise UserError(problem, hint="parameters.revision=... with 40 digits, from the hub's page: Files, History")
    if streaming and limit is None:
        problem = f"{dataset}: streaming needs a limit: a stream has no random order that a resumed run could repeat"
        hint = "parameters.limit=20000 takes the first rows; without `streaming` all are fetched"
        raise UserError(problem, hint=hint)
    folder, read_as = image_folder(images), form(format)
    with as_user_error(f"{dataset}: can't be opened as a data set"):
        of_hub = {"path": dataset, "name": subset, "split": split, "revision": revision}
        data = _first_rows(cache, of_hub, limit) if streaming and limit and not here else _opened(of_hub)
    rows: Any = data.select(range(min(limit or len(data), len(data)))).with_format("arrow")
    if not len(rows):
        raise UserError(f"{dataset}: holds no rows")
    parse = partial(_parse, read_as)
    inputs = [VERSION, data._fingerprint, len(rows), read_as.keys.model_dump(), images is None]
    survey = cached_survey(inputs, lambda: survey_rows(rows, parse, folder))
    return Rows(rows, parse, images=folder, follow_links=follow_links, turns=turns, name=dataset, surveyed=survey)


def _parse(read_as: Form, row: Any) -> Row:
    """Parse a table of one row, whose encoded images stay encoded: `{bytes, path}`. Raises Fault."""
    return read_as.row(row.to_pylist()[0])


def _opened(of_hub: Mapping[str, Any]) -> Any:
    """Return a data set, which the library keeps in its own cache unless `save_to_disk` wrote it."""
    from datasets import DatasetDict, load_dataset, load_from_disk  # over a second to import

    folder, split = of_hub["path"], of_hub["split"]
    if not any(isfile(f"{folder}/{file}") for file in ("state.json", "dataset_dict.json")):
        return load_dataset(**of_hub)
    saved = load_from_disk(folder)
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or split): saved}
    if split not in splits:
        raise ValueError(f"no split {split!r} (known: {', '.join(splits)})")
    return splits[split]


def _first_rows(cache: Path, of_hub: Mapping[str, Any], limit: int) -> Any:
    """Return the first rows of a data set of the hub, of which no more is fetched, and nothing the next time."""
    from datasets import Dataset, load_dataset, load_from_disk

    key = digest(of_hub, limit)
    kept = cache / "indexes" / "streamed" / key
    with hold(kept):
        if not isdir(kept):
            first = load_dataset(**of_hub, streaming=True).decode(False).take(limit)
            with atomic_folder(kept) as target, TemporaryDirectory(dir=kept.parent) as scratch:
                made = Dataset.from_generator(lambda: iter(first), first.features, scratch, fingerprint=key)
                made.save_to_disk(target)
    return load_from_disk(kept)
