"""A recipe's name on the command line -> its file."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (Path("recipes"), PACKAGE.parent / "recipes", PACKAGE / "recipes")  # here, a checkout's, a wheel's


def find(name: str) -> Path:
    """A path as it is; a bare name such as `training-scheme` stands for `recipes/training_scheme.yaml`."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    for folder in FOLDERS:
        file = folder / f"{name.replace('-', '_')}.yaml"
        if file.is_file():
            return file
    return FOLDERS[0] / f"{name.replace('-', '_')}.yaml"


def worlds() -> dict[str, Path]:
    """The worlds that a recipe can be laid in, by name: `recipes/worlds/NAME.yaml`, the nearest folder's first."""
    return {file.stem: file for folder in reversed(FOLDERS) for file in sorted(folder.glob("worlds/*.yaml"))}
