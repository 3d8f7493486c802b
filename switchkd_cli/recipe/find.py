"""Find a recipe's file by the name typed on the command line, and the other files in recipes/."""

import sys
from functools import cache
from os.path import exists
from pathlib import Path

from switchkd_cli.errors import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
HERE = Path("recipes")
FOLDERS = (HERE, PACKAGE.parent / "recipes", PACKAGE / "recipes")  # current folder, source checkout, wheel


def find(name: str) -> Path:
    """Return the file of a recipe: a path itself, or `recipes/training_scheme.yaml` for `training-scheme`.

    `recipes/NAME.yaml` means the recipe shipped with the package where the current folder has no such file.
    Raises UserError, listing every known name, for a bare name that no recipe has.
    """
    if (file := find_or_none(name)) is not None:
        return file
    known = recipes()
    suggestion = did_you_mean(name, known)
    problem = f"{name}: no recipe has this name" + (suggestion if "did you mean" in suggestion else "")
    raise UserError(problem, hint=f"a recipe's file, or one of {', '.join(known)}")


def find_or_none(name: str) -> Path | None:
    """Return the same as `find`, but None for a bare name that no recipe has."""
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        return recipes().get(_bare(name))
    path = Path(name)
    shipped = [folder / path.name for folder in FOLDERS if path.parent == HERE != folder]
    return path if exists(path) else next(filter(_is_shipped, shipped), path)


@cache  # so that the line is printed once
def _is_shipped(file: Path) -> bool:
    if file.is_file():
        print(f"{HERE / file.name}: not in this folder, read from the package: {file}", file=sys.stderr)
    return file.is_file()


def recipes() -> dict[str, Path]:
    """Return the recipes that have a bare name; a file in the current folder wins over a shipped one."""
    files = {_bare(name): file for name, file in yaml_files(".").items()}
    return dict(sorted(files.items()))


def yaml_files(subfolder: str) -> dict[str, Path]:
    """Return the YAML files in a subfolder of recipes/ (`worlds`, `printed`) by name, the nearest folder's first."""
    return {file.stem: file for folder in reversed(FOLDERS) for file in sorted((folder / subfolder).glob("*.yaml"))}


def _bare(name: str) -> str:
    return name.replace("_", "-")
