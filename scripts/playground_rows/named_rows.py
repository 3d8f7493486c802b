"""The rows that recipes name: the folder of a data file says what is in it, as `runs/rows/drills-24000x10-105/rows.json` does."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
        for run in load_rows(recipe):
            for name, data in run.config.data.items():
                if data.source != "llava_json":
                    continue
                for file in data_files(data.parameters["file"]):
                    rows = _read(Path(file))
                    if isinstance(rows, str):
                        problems.append(f"{recipe}: data.{name}: {rows}")
                        continue
                    images = data.parameters.get("images")
                    right = str(rows.folder) if rows.kind in WITH_IMAGES else None
                    if images != right:
                        problems.append(f"{recipe}: data.{name}: images: must be {right or 'left out'}, got {images}")
                    found[rows.folder] = rows
    if problems:
        raise UserError(list(dict.fromkeys(problems)), hint=HINT)
    return list(found.values())


def _read(file: Path) -> NamedRows | str:
    """Return what a file's name asks for, or what is wrong with it."""
    match = NAME.fullmatch(file.parent.name)
    if match is None or file.name != "rows.json":
        return f"{file}: not a name that says what is in it"
    kind, *numbers = match.groups()
    if kind not in KINDS:
        return f"{file}: no such kind of rows, got {kind!r}{did_you_mean(kind, KINDS)}"
    return NamedRows(file.parent, kind, *map(int, numbers))
