"""Digests of what a recipe names on this machine (checkpoints, data files, images): every byte of them counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import TYPE_CHECKING

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.files.hashes import cache_home, content, digest_of
from switchkd_cli.recipe.model_paths import locate

if TYPE_CHECKING:
    from switchkd_cli.recipe.schema import DataSet

CARD = "README.md"  # says what a model is, and is no part of it


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

    def forget(self) -> None:
        """Look at everything anew."""
        self._known.clear()

    def _once(self, named: tuple, compute: Callable[[], str | None]) -> str | None:
        if named not in self._known:
            self._known[named] = compute()
        return self._known[named]


def fingerprint(name: str) -> str | None:
    """A digest of what a model's name holds now: see `Fingerprints.model`."""
    return Fingerprints().model(name)


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
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    names = [str(file) for file in files if file.name != CARD and not any(p[0] == "." for p in file.parts)]
    return digest_of(folder, sorted(names), needed=True)


def _commit(hub_id: str) -> str | None:
    """The commit of the snapshot in the hub's cache."""
    from huggingface_hub import snapshot_download  # half a second to import

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
