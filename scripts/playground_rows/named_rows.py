"""The rows that recipes name: the folder of a data file says what is in it, as runs/rows/drills-24000x10-105 does."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.playground_rows.write import KINDS, WITH_IMAGES, write
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.named_files import data_files

NAME = re.compile(r"(\w+)-([1-9]\d*)x([1-9]\d*)-(\d+)", re.ASCII)
HINT = "a data file is named FOLDER/KIND-PICTURESxTURNS-SEED/rows.json, as runs/rows/drills-24000x10-105/rows.json is"


@dataclass(frozen=True)
class NamedRows:
    """What the name of a folder asks for."""

    folder: Path
    kind: str
    pictures: int
    turns: int
    seed: int

    def write(self) -> Path:
        """Write the rows, unless they are there, and return their file."""
        return write(self.folder, kind=self.kind, pictures=self.pictures, turns=self.turns, seed=self.seed)


def named_rows(recipes: Iterable[Path]) -> list[NamedRows]:
    """Return the rows of all data files that the recipes name, each once.

    Raises UserError with the problems of all names.
    """
    found: dict[Path, NamedRows] = {}
    problems: list[str] = []
    for recipe in recipes:
        data_sets = [item for run in load_rows(recipe) for item in run.config.data.items()]
        for name, parameters in ((name, data.parameters) for name, data in data_sets if data.source == "llava_json"):
            for file in map(Path, data_files(parameters["file"])):
                try:
                    found[file.parent] = _read(file, parameters)
                except UserError as error:
                    problems += [f"{recipe}: data.{name}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(list(dict.fromkeys(problems)), hint=HINT)
    return list(found.values())


def _read(file: Path, parameters: Mapping[str, Any]) -> NamedRows:
    """Return what a file's name asks for. Raises UserError for another name, and where the rows would be read otherwise."""
    folder = file.parent
    match = NAME.fullmatch(folder.name)
    if match is None or file.name != "rows.json":
        raise UserError(f"{file}: not a name that says what is in it")
    kind, *numbers = match.groups()
    if kind not in KINDS:
        raise UserError(f"{file}: no such kind of rows, got {kind!r}{did_you_mean(kind, KINDS)}")
    # A turn about an image sees no other turn; a row without one is a conversation.
    needed = {"images": str(folder), "turns": "independent"} if kind in WITH_IMAGES else {"images": None, "turns": None}
    wrong = [
        f"{file}: {key}: must be {value or 'left out'}, got {parameters.get(key)}"
        for key, value in needed.items()
        if parameters.get(key) != value
    ]
    if wrong:
        raise UserError(wrong)
    return NamedRows(folder, kind, *map(int, numbers))
