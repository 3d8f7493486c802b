"""Data source: a data set of Hugging Face `datasets`, from a folder or from the hub at one commit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os.path import isdir, isfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from switchkd_cli.engine.data.open_file import VERSION, cached_survey, image_folder
from switchkd_cli.engine.data.rows import Rows, survey_rows
from switchkd_cli.engine.data.turns import form
from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import atomic_folder
from switchkd_cli.files.locks import hold

if TYPE_CHECKING:
    from datasets import Dataset

COMMIT = re.compile("[0-9a-f]{40}")
BLOCK = 64  # rows read at once, with their encoded images


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

    A hub id needs its `revision`, a commit. With `streaming` only the first `limit` rows are fetched, once. All is read
    through Arrow files, under `cache` where there are none yet. Other parameters: see `open_rows`. Raises UserError for what
    can't be opened.
    """
    if not isdir(dataset) and not COMMIT.fullmatch(revision or ""):
        problem = f"{dataset}: no such folder; a data set of the hub needs its `revision`, a commit, got {revision!r}"
        raise UserError(problem, hint="parameters.revision=... with 40 digits, from the hub's page: Files, History")
    if streaming and (limit is None or isdir(dataset)):
        why = (
            "a folder is here already"
            if isdir(dataset)
            else "a stream has no random order that a resumed run could repeat"
        )
        raise UserError(f"{dataset}: streaming: {why}", hint="leave `streaming` out, or give a hub id and a `limit`")
    read_as, folder, arguments = (
        form(format),
        image_folder(images),
        {"name": subset, "split": split, "revision": revision},
    )
    with as_user_error(f"{dataset}: can't be opened as a data set"):
        data = (
            _streamed(cache, dataset, arguments, limit) if streaming and limit else _opened(cache, dataset, arguments)
        )
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    if not len(data):
        raise UserError(f"{dataset}: holds no rows")
    rows: Any = ArrowRows(data.with_format("arrow"))
    inputs = [VERSION, data._fingerprint, len(data), read_as.keys.model_dump(), images is None]
    surveyed = cached_survey(inputs, lambda: survey_rows(rows, read_as.row, folder))
    return Rows(
        rows, read_as.row, images=folder, follow_links=follow_links, turns=turns, name=dataset, surveyed=surveyed
    )


@dataclass(eq=False)
class ArrowRows:
    """Sequence of rows as plain values; encoded images stay encoded: `{bytes, path}`."""

    data: Dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> object:
        return self.data[index : index + 1].to_pylist()[0]

    def __iter__(self) -> Iterator[object]:
        for block in self.data.iter(BLOCK):
            yield from block.to_pylist()


def _opened(cache: Path, dataset: str, arguments: Mapping[str, Any]) -> Dataset:
    from datasets import Dataset, load_dataset, load_from_disk  # over a second to import

    if not any(isfile(f"{dataset}/{file}") for file in ("state.json", "dataset_dict.json")):
        return load_dataset(dataset, cache_dir=str(cache / "indexes" / "arrow"), **arguments)
    saved, split = load_from_disk(dataset), arguments["split"]
    if not isinstance(saved, Dataset):
        if split not in saved:
            raise ValueError(f"no split {split!r} (known: {', '.join(saved)})")
        return saved[split]
    if saved.split not in (None, split):
        raise ValueError(f"it is the split {str(saved.split)!r}, got {split!r}")
    return saved


def _streamed(cache: Path, dataset: str, arguments: Mapping[str, Any], limit: int) -> Dataset:
    """Return the first rows of a data set of the hub, of which no more is fetched, and nothing the next time."""
    from datasets import Dataset, load_dataset, load_from_disk

    key = hashlib.sha256(json.dumps([dataset, arguments, limit]).encode()).hexdigest()[:16]
    kept = cache / "indexes" / "streamed" / key
    kept.parent.mkdir(parents=True, exist_ok=True)
    with hold(kept):
        if not isdir(kept):
            first = load_dataset(dataset, streaming=True, **arguments).decode(False).take(limit)
            with atomic_folder(kept) as partial, TemporaryDirectory(dir=kept.parent) as scratch:
                Dataset.from_generator(lambda: iter(first), first.features, scratch, fingerprint=key).save_to_disk(
                    partial
                )
    return load_from_disk(kept)
