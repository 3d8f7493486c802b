"""Digests of what a recipe names on this machine (checkpoints, data files, images): every byte of them counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.files.hashes import cache_home, content, digest_of
from switchkd_cli.recipe.model_paths import locate

if TYPE_CHECKING:
    from switchkd_cli.recipe.schema import DataSet

T = TypeVar("T")

CARD = "README.md"  # describes a model, and is no part of it


class Fingerprints:
    """The digests that one command needs, each computed once, when it is first asked for."""

    def __init__(self) -> None:
        self._digests: dict[tuple, Any] = {}

    def model(self, name: str) -> str | None:
        """Return a digest of a checkpoint's folder without its card, or the commit of a hub id in the hub's cache.

        None where nothing is on this machine. Raises UserError for a file that can't be read.
        """
        return self._once(("model", name), lambda: fingerprint(name))

    def file(self, path: str) -> str:
        """Return a digest of one file. Raises UserError where it can't be read."""
        return self._once(("file", path), lambda: content(Path(path)))

    def images(self, spec: DataSet) -> str | None:
        """Return a digest of the images that a data set's usable examples name, compared as `images_by` says.

        None where there is no folder of images, or where the examples can't be read: opening the data set reports why.
        """
        key = ("images", spec.source, json.dumps(spec.parameters, sort_keys=True), spec.images_by)
        return self._once(key, lambda: _images(spec))

    def forget(self) -> None:
        """Drop all digests: the next call reads everything again."""
        self._digests.clear()

    def _once(self, key: tuple, compute: Callable[[], T]) -> T:
        if key not in self._digests:
            self._digests[key] = compute()
        return self._digests[key]


def fingerprint(name: str) -> str | None:
    """Return a digest of what a model's name stands for now: see `Fingerprints.model`."""
    if isfile(name):
        return content(Path(name))
    try:
        path = locate(name)
    except UserError:
        return None
    if not exists(path):
        return _commit(path)
    folder = Path(path)
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    names = [str(file) for file in files if file.name != CARD and not any(p[0] == "." for p in file.parts)]
    return digest_of(folder, sorted(names), needed=True)


def _commit(hub_id: str) -> str | None:
    """Return the commit of the snapshot in the hub's cache."""
    from huggingface_hub import snapshot_download  # takes half a second to import

    try:
        return Path(snapshot_download(hub_id, local_files_only=True)).name
    except (OSError, ValueError):
        return None


def _images(spec: DataSet) -> str | None:
    folders = [value for value in spec.parameters.values() if isinstance(value, str) and isdir(value)]
    if spec.images_by == "names" or not folders:
        return None
    try:
        rows = registry.resolve("source", spec.source)(cache_home(), **spec.parameters)
    except UserError:
        return None
    names = rows.survey.image_names
    if rows.images is None or not names:
        return None
    hint = "`images_by: size_and_time` in its data set compares sizes and times instead"
    return digest_of(rows.images, names, by_content=spec.images_by == "content", hint=hint)
