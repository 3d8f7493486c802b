"""A recipe file as plain data, with the recipe that it extends underneath.

`extends: table1_0.5b.yaml` names a recipe in the same folder. Its keys are taken over, except its title, rows and
controls; a key that this file writes takes the other's place; then `drop` and `set` patch what is there, in the
language of rows. Every value keeps the place where it was written, so that errors point at the right file.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe import overrides, yaml_positions
from switchkd_cli.recipe.find import HERE, recipes
from switchkd_cli.recipe.yaml_positions import PlacedDict

EXTENDS = "extends"
OWN = ("title", "rows", "controls")  # said by each recipe for itself

Problem = tuple[str, str, str]  # place, dotted path, message


def read(path: Path, above: Sequence[Path] = ()) -> tuple[Any, list[Problem]]:
    """The file's data, whole, and what is wrong with its `drop` and `set`.

    `above` are the files that extend this one. Raises UserError for a file that can't be read, is no mapping, or
    extends what it can't.
    """
    data = yaml_positions.read(_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping, got {'nothing' if data is None else repr(data)}")
    if EXTENDS not in data:
        return data, []
    base, problems = read(_extended(data, path, above), (*above, path))
    whole = PlacedDict(data.place)
    for layer, left_out in ((base, OWN), (data, (EXTENDS, "drop", "set"))):
        for key, value in layer.items():
            if key not in left_out:
                whole[key] = value
                whole.places[key] = layer.places[key]
    patched, found = patched_by(data, whole)
    return patched, problems + found


def patched_by(layer: Any, data: Any, at: tuple[yaml_positions.Step, ...] = ()) -> tuple[Any, list[Problem]]:
    """`data` with the `drop` and `set` of `layer` applied as far as they can be; `at` is where they stand in it."""
    problems: list[Problem] = []
    inside = layer
    for step in at:
        inside = inside[step]
    dropped = inside.get("drop")
    for term in dropped if isinstance(dropped, list) else ():
        try:
            data = overrides.drop(data, [term])
        except overrides.PatchError as error:
            problems.append(
                (yaml_positions.where(layer, (*at, "drop")), ".".join(map(str, (*at, "drop"))), str(error))
            )
    changes = inside.get("set")
    for dotted, value in changes.items() if isinstance(changes, dict) else ():
        path = (*at, "set", dotted)
        place = yaml_positions.where(layer, path)
        try:
            data = overrides.apply(data, {dotted: value}, place=place)
        except overrides.PatchError as error:
            problems.append((place, ".".join(map(str, path)), str(error)))
    return data, problems


def _extended(data: PlacedDict, path: Path, above: Sequence[Path]) -> Path:
    """The file that `data`, read from `path`, extends."""
    name, place = data[EXTENDS], yaml_positions.where(data, (EXTENDS,))
    if not isinstance(name, str) or "/" in name or name.strip(".") == "":
        raise UserError(f"{place}: {EXTENDS}: must name a recipe file in the same folder, got {name!r}")
    file = path.with_name(name)
    if not isfile(file):
        beside = sorted(p.name for p in path.parent.glob("*.yaml") if p != path)
        raise UserError(f"{place}: {EXTENDS}: no such recipe, got {name!r}{did_you_mean(name, beside)}")
    if file in (*above, path):
        circle = " -> ".join(p.name for p in (*above, path, file))
        raise UserError(f"{place}: {EXTENDS}: goes round in a circle: {circle}")
    for key in ("drop", "set"):
        wanted = list if key == "drop" else dict
        if not isinstance(data.get(key, wanted()), wanted):
            kind = "list" if key == "drop" else "mapping"
            raise UserError(
                f"{yaml_positions.where(data, (key,))}: {key}: must be a {kind}, got {data[key]!r}"
            )
    return file


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise OSError("not a file")
        with path.open(encoding="utf-8") as stream:
            return stream.read(yaml_positions.LONGEST + 1)
    except FileNotFoundError:
        known = [*(str(HERE / p.name) for p in recipes().values()), *map(str, path.parent.glob("*.yaml"))]
        hint = "a recipe's file, or the name of one in recipes/, such as quickstart"
        raise UserError(f"{path}: no such recipe{did_you_mean(path, known)}", hint=hint) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable: {error}") from None
