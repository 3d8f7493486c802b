"""A recipe's name on the command line -> its file."""

from __future__ import annotations

import sys
from functools import cache
from os.path import exists
from pathlib import Path

from switchkd_cli.errors import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
HERE = Path("recipes")
FOLDERS = (HERE, PACKAGE.parent / "recipes", PACKAGE / "recipes")  # here, a checkout's, a wheel's


def find(name: str) -> Path:
    """A path as it is; a bare name such as `training-scheme` stands for `recipes/training_scheme.yaml`.

    Where there is no such file here, `recipes/NAME.yaml` is the recipe of that name that ships with the package.
    Raises UserError, with every name there is, for a bare name that no recipe has.
    """
    if (file := named(name)) is not None:
        return file
    known = recipes()
    near = did_you_mean(name, known)
    problem = f"{name}: no recipe has this name" + (near if "did you mean" in near else "")
    raise UserError(problem, hint=f"a recipe's file, or one of {', '.join(known)}")


def named(name: str) -> Path | None:
    """The same, or None for a bare name that no recipe has."""
    if not is_path(name):
        return recipes().get(_plain(name))
    path = Path(name)
    shipped = [folder / path.name for folder in FOLDERS if path.parent == HERE != folder]
    return path if exists(path) else next(filter(_is_shipped, shipped), path)


@cache  # said once
def _is_shipped(file: Path) -> bool:
    if file.is_file():
        print(f"{HERE / file.name}: not here, taken from the package: {file}", file=sys.stderr)
    return file.is_file()


def is_path(name: str) -> bool:
    """Whether a name is a file's rather than a bare one."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def recipes() -> dict[str, Path]:
    """The recipes that go by a bare name, the nearest folder's first."""
    files = {_plain(file.stem): file for folder in reversed(FOLDERS) for file in folder.glob("*.yaml")}
    return dict(sorted(files.items()))


def _plain(name: str) -> str:
    return name.replace("_", "-")


def worlds() -> dict[str, Path]:
    """The worlds that a recipe can be laid in, by name: `recipes/worlds/NAME.yaml`, the nearest folder's first."""
    return {file.stem: file for folder in reversed(FOLDERS) for file in sorted(folder.glob("worlds/*.yaml"))}
