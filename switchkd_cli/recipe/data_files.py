"""The files that a data set's `file` stands for: one, several, or those that a pattern matches."""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob
from os.path import isfile
from typing import Any


def data_files(value: Any) -> list[str]:
    """Return the files of a name, a pattern (`*`, `?`, `[]`, `**`) or a list of these; the matches of a pattern sorted.

    A name without a file, and a pattern without matches, stand for themselves. Anything else has no files.
    """
    names = value if isinstance(value, list) else [value]
    return [file for name in names if isinstance(name, str) for file in _matches(name)]


def _matches(name: str) -> Iterator[str]:
    if isfile(name) or not set("*?[") & set(name):
        yield name
    else:
        yield from sorted(filter(isfile, glob(name, recursive=True))) or [name]
