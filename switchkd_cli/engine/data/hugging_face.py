"""Data source: a data set of Hugging Face `datasets`, from a folder or from the hub at one commit."""

import re
from collections.abc import Mapping
from functools import partial
from os.path import isdir, isfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import PositiveInt

from switchkd_cli.engine.data.open_file import VERSION, cached_survey, image_folder
from switchkd_cli.engine.data.rows import Row, Rows, survey_rows
from switchkd_cli.engine.data.turns import Form, form
from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import atomic_folder, hold
from switchkd_cli.recipe.run import digest

COMMIT = re.compile("[0-9a-f]{40}")


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
