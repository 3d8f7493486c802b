"""Digests of what a recipe names on this machine (checkpoints, data files, images): every byte of them counts."""

import json
from collections.abc import Callable
from glob import escape
from os.path import exists, isdir, isfile, relpath
from pathlib import Path
from typing import Any

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.files.hashes import cache_home, content, digest_of, short_hash
from switchkd_cli.recipe.named_files import data_files, locate
from switchkd_cli.recipe.schema import DataSet, Evaluation

DATASET = "dataset"  # the parameter of a source that names a folder of data, or a hub id
CARD = "README.md"  # describes a model, and is no part of it
FORMAT = 2  # part of every key: raise it when the same recipe no longer gives the same weights


def digest(*parts: Any) -> str:
    """Return a short hash of plain data."""
    return short_hash([FORMAT, *parts])


class Fingerprints:
    """The digests that one command needs, each computed once, when it is first asked for."""

    def __init__(self) -> None:
        self._digests: dict[str, str | None] = {}

    def named(self, name: str) -> str | None:
        """Return a digest of a file, of a checkpoint's folder without its card, or a hub id's commit in the hub's cache.

        None where nothing is on this machine. Raises UserError for a file that can't be read.
        """
        if name not in self._digests:
            self._digests[name] = fingerprint(name)
        return self._digests[name]

    def images(self, spec: DataSet) -> str | None:
        """Return a digest of the images that a data set's usable examples name, compared as `images_by` says.

        None where there is no folder of images, or where the examples can't be read: opening the data set reports why.
        """
        key = json.dumps([spec.source, spec.parameters, spec.images_by], sort_keys=True)
        if key not in self._digests:
            self._digests[key] = _images(spec)
        return self._digests[key]

    def data(self, field: str, spec: DataSet) -> dict[str, str | None]:
        """Return digests, by field, of the files that a data set's parameters name, and of its examples' images."""
        digests: dict[str, str | None] = {}
        for parameter, value in spec.parameters.items():
            of_folder = parameter == DATASET
            files = [file for file in data_files(f"{escape(value)}/**" if of_folder else value) if isfile(file)]
            contents = [self.named(file) for file in files]
            if files == [value]:
                digests[f"{field}.{parameter}"] = contents[0]
            elif files:  # names in a folder say which split a file is of
                inside = [relpath(file, value) for file in files] if of_folder else []
                digests[f"{field}.{parameter}"] = digest(inside, contents)
        return digests | {f"{field}.images": self.images(spec)}

    def evaluation(self, asked: Evaluation | None) -> dict[str, str | None]:
        """Return digests, by field, of what an evaluation reads apart from models: one's own rows, and tasks with their code."""
        digests: dict[str, str | None] = {}
        if asked is not None and asked.data is not None:
            digests |= self.data("evaluation.data", asked.data)
        if asked is not None and asked.tasks_path is not None:
            code = _of_folder(Path(asked.tasks_path), lambda file: "__pycache__" not in file.parts)
            digests["evaluation.tasks_path"] = code
        return digests

    def forget(self) -> None:
        """Drop all digests: the next call reads everything again."""
        self._digests.clear()


def fingerprint(name: str) -> str | None:
    """Return a digest of what a model's name stands for now: see `Fingerprints.named`."""
    if isfile(name):
        return content(Path(name))
    try:
        path = locate(name)
    except UserError:
        return None
    if not exists(path):
        return cached_commit(path)
    return _of_folder(Path(path), lambda file: file.name != CARD and not any(p[0] == "." for p in file.parts))


def cached_commit(hub_id: str) -> str | None:
    """Return the commit of the snapshot in the hub's cache."""
    from huggingface_hub import snapshot_download  # takes half a second to import

    try:
        return Path(snapshot_download(hub_id, local_files_only=True)).name
    except (OSError, ValueError):
        return None


def _of_folder(folder: Path, counts: Callable[[Path], bool]) -> str:
    """Return a digest of the files in a folder that count, told by their path in it."""
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return digest_of(folder, sorted(str(file) for file in files if counts(file)), needed=True)


def _images(spec: DataSet) -> str | None:
    parameters = {key: value for key, value in spec.parameters.items() if key != DATASET}
    folders = [value for value in parameters.values() if isinstance(value, str) and isdir(value)]
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
