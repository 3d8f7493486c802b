"""The files that a data set's `file` stands for: one, several, or those that a pattern matches."""

from glob import glob
from os.path import isfile
from typing import Any


def data_files(value: Any) -> list[str]:
    """Return the files of a name, a pattern (`*`, `?`, `[]`, `**`) or a list of these, each once; a pattern's are sorted.

    A name without a file, and a pattern without matches, stand for themselves. Anything else has no files.
    """
    found: list[str] = []
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, str):
            found += [name] if isfile(name) else sorted(filter(isfile, glob(name, recursive=True))) or [name]
    return list(dict.fromkeys(found))
