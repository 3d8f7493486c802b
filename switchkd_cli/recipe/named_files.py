"""What names stand for: recipes, models (a folder, a hub id, playground:NAME), and the files of data."""

import re
import sys
from functools import cache
from glob import glob
from os.path import exists, expanduser, isdir, isfile  # unlike Path's methods, they don't raise for odd names
from pathlib import Path
from typing import Any

from switchkd_cli.errors import UserError, did_you_mean

SHIPPED = "playground:"
ASSETS = Path(__file__).parents[1] / "playground" / "assets"
HUB_ID = re.compile(r"(?:[\w.-]+/)?\w[\w.-]*")
HINT = "name a checkpoint folder, a hub id, or a run's model/ folder"


def locate(name: str, asked: str = "") -> str:
    """Return the folder or hub id of a recipe's model name; `playground:NAME` is shipped in this package.

    A name that can't be a hub id, or whose first folder exists here, can only be a folder. Raises UserError for a
    shipped name that does not exist, and for a folder without a config: its problem begins with what `asked` for it.
    """
    if name.startswith(SHIPPED):
        folder = ASSETS / name.removeprefix(SHIPPED)
        if folder.parent != ASSETS or folder.name == ".." or not isdir(folder):
            shipped = ", ".join(sorted(SHIPPED + p.parent.name for p in ASSETS.glob("*/config.json")))
            raise UserError(f"{asked}{name}: no such model in this package", hint=f"shipped: {shipped}")
        return str(folder)
    in_folder = "/" in name and isdir(name.partition("/")[0])
    if not (in_folder or name.startswith((".", "/", "~")) or HUB_ID.fullmatch(name) is None or exists(name)):
        return name
    folder = Path(expanduser(name))
    if not isdir(folder):
        raise UserError(f"{asked}{name}: {'not a folder' if exists(folder) else 'no such folder'}", hint=HINT)
    if not any((folder / file).is_file() for file in ("config.json", "tokenizer.json")):
        raise UserError(f"{asked}{name}: no config.json or tokenizer.json in this folder", hint=HINT)
    return str(folder)


def is_hub_id(name: str) -> bool:
    """Return whether a name stands for a model of the hub; others are folders, shipped, or made by another run."""
    try:
        return not isdir(locate(name))
    except UserError:
        return False


def data_files(value: Any) -> list[str]:
    """Return the files of a name, a pattern (`*`, `?`, `[]`, `**`) or a list of these, each once; a pattern's are sorted.

    A name without a file, and a pattern without matches, stand for themselves. Anything else has no files.
    """
    found: list[str] = []
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, str):
            found += [name] if isfile(name) else sorted(filter(isfile, glob(name, recursive=True))) or [name]
    return list(dict.fromkeys(found))


PACKAGE = Path(__file__).resolve().parents[1]
HERE = Path("recipes")
NAMED = (".", "methods")  # whose recipes have a bare name
FOLDERS = (HERE, PACKAGE.parent / "recipes", PACKAGE / "recipes")  # current folder, source checkout, wheel


def find(name: str) -> Path:
    """Return the file of a recipe: a path itself, or `recipes/methods/losses.yaml` for `methods/losses`.

    `recipes/NAME.yaml` means the recipe shipped with the package where the current folder has no such file.
    Raises UserError, listing every known name, for a bare name that no recipe has.
    """
    if (file := find_or_none(name)) is not None:
        return file
    known = recipes()
    problem = f"{name}: no recipe has this name{did_you_mean(name, known, most=0)}"
    raise UserError(problem, hint=f"a recipe's file, or one of {', '.join(known)}")


def find_or_none(name: str) -> Path | None:
    """Return the same as `find`, but None for a bare name that no recipe has."""
    path, known = Path(name), recipes().get(_bare(name))
    if known is not None or (not name.endswith((".yaml", ".yml")) and "/" not in name):
        return known
    in_recipes = path.is_relative_to(HERE) and ".." not in path.parts
    shipped = [folder / path.relative_to(HERE) for folder in FOLDERS[1:] if in_recipes]
    return path if exists(path) else next((file for file in shipped if _is_shipped(file, path)), path)


@cache  # so that the line is printed once
def _is_shipped(file: Path, asked: Path) -> bool:
    if file.is_file():
        print(f"{asked}: not in this folder, read from the package: {file}", file=sys.stderr)
    return file.is_file()


def recipes() -> dict[str, Path]:
    """Return the recipes that have a bare name; a file in the current folder wins over a shipped one."""
    files = {str(Path(folder, name)): file for folder in NAMED for name, file in yaml_files(folder).items()}
    return dict(sorted((_bare(name), file) for name, file in files.items()))


def yaml_files(subfolder: str) -> dict[str, Path]:
    """Return the YAML files in a subfolder of recipes/ (`methods`, `printed`) by name, the nearest folder's first."""
    return {file.stem: file for folder in reversed(FOLDERS) for file in sorted((folder / subfolder).glob("*.yaml"))}


def _bare(name: str) -> str:
    return name.replace("_", "-")
