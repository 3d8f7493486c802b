"""Read a recipe file as plain data, merged with the recipe that it extends; apply `drop`, `set` and overrides to plain data.

`extends: table1_0.5b.yaml` names a recipe in the same folder, `../NAME` one in the folder above. Its keys are inherited,
except its title, rows and controls; a key that this file writes replaces the inherited one; then `drop` and `set` patch the
result as rows do. A row's `paper` may be the name of an entry in recipes/printed/, which is put in its place. Every value keeps
the place where it was written, so that errors point at the right file.

A dotted path enters mappings by key, and lists by their items' `name` (a term without a name has its loss's) or by
number: `stages.distill.objective.vsd.weight`. `apply` and `drop` never change their input.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from os.path import isfile
from pathlib import Path
from types import MappingProxyType
from typing import Any

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.named_files import HERE, NAMED, yaml_files
from switchkd_cli.recipe.yaml_positions import PlacedDict, Step, at, item_name, line, listed, mapping

EXTENDS = "extends"
ABOVE = "../"
NOT_INHERITED = ("title", "rows", "controls")
OPTIONAL_GROUPS = ("checkpoints", "deepspeed", "switch")
"""Groups of settings that all have defaults: a path may lead into them although the recipe does not have them."""


_ROWS, _WORLD = "rows are chosen with --row, or changed in the file", "a world is chosen with --world"
CHOSEN = {"rows": _ROWS, "controls": _ROWS, "world": _WORLD, "stand_ins": _WORLD}
"""Fields that no row or override sets, and why."""


class PathError(Exception):
    """A path that does not exist. The message says what it got and what was near."""


def apply(
    data: Any, values: Mapping[str, Any], place: str = "override", refused: Mapping[str, str] = MappingProxyType({})
) -> tuple[Any, dict[str, str]]:
    """Set each dotted path to its value, where it exists. Only the last key may be new, and the `OPTIONAL_GROUPS`.

    Returns the changed data and, by path, why a value could not be set; of the `refused` fields that is given. Values were
    written at `place`, or where `values` was read from.
    """
    data, misfits = copy.deepcopy(data) if values else data, {}
    for dotted, value in values.items():
        if why := refused.get(dotted.split(".")[0]):
            misfits[dotted] = why
            continue
        try:
            _set(data, dotted, value, getattr(values, "places", {}).get(dotted, place))
        except PathError as error:
            misfits[dotted] = str(error)
    return data, misfits


def drop(data: Any, names: Sequence[Any]) -> tuple[Any, list[str]]:
    """Remove the named terms from every stage's objective. Returns the changed data, and a message for each unknown name."""
    data = copy.deepcopy(data) if names else data
    objectives = [listed(at(stage, "objective")) for stage in listed(at(data, "stages"))]
    known = sorted({name for terms in objectives for name in map(item_name, terms) if name})
    for terms in objectives:
        kept = [i for i, term in enumerate(terms) if item_name(term) not in names]
        if hasattr(terms, "places"):
            terms.places = {new: terms.places[i] for new, i in enumerate(kept) if i in terms.places}
        terms[:] = [terms[i] for i in kept]
    return data, [f"no such term, got {name!r}{did_you_mean(name, known)}" for name in names if name not in known]


def _set(data: Any, dotted: str, value: Any, place: str) -> None:
    *parents, last = dotted.split(".")
    if parents and parents[0] in OPTIONAL_GROUPS and isinstance(data, dict) and not data.get(parents[0]):
        _put(data, parents[0], PlacedDict(place), place)
    target = data
    for done, step in enumerate(parents):
        target = target[_step(target, step, parents[:done])]
    key = last if isinstance(target, dict) else _step(target, last, parents)
    _put(target, key, copy.deepcopy(value), place)


def _put(target: Any, key: Step, value: Any, place: str) -> None:
    target[key] = value
    if hasattr(target, "places"):
        target.places[key] = place


def _step(target: Any, step: str, done: list[str]) -> Step:
    """Return the key or index that `step` means in `target`."""
    if isinstance(target, dict):
        if step in target:
            return step
        known = [str(key) for key in target]
    elif isinstance(target, list):
        names = [item_name(item) for item in target]
        if step in names:
            return names.index(step)
        if step.isdecimal() and len(step) < 10 and int(step) < len(target):
            return int(step)
        known = [name for name in names if name]
    else:
        raise PathError(f"{'.'.join(done)} is a value, it has no {step!r}")
    inside = f" in {'.'.join(done)}" if done else ""
    raise PathError(f"no such field{inside}, got {step!r}{did_you_mean(step, known)}")


def read(path: Path) -> tuple[PlacedDict, list[str]]:
    """Return a recipe's data, and a line for each problem of a `drop`, a `set` or a `paper`.

    Raises UserError for a file that can't be read, is no mapping, or extends what it can't.
    """
    data, found = _merged(path, ())
    for name, row in mapping(data.get("rows")).items():
        if isinstance(entry := at(row, "paper"), str):
            printed = _printed()
            if entry not in printed:
                message = f"unknown printed row, got {entry!r}{did_you_mean(entry, printed)}"
                found.append(line(data, ("rows", name, "paper"), message))
            row["paper"] = printed.get(entry, {})
    return data, found


def patch(layer: Any, data: Any, path: Sequence[Step] = ()) -> tuple[Any, list[str]]:
    """Apply the `drop` and `set` of `layer`, written at `path` in it, to `data`, as far as they can be applied.

    Returns the patched data and a line for each part that can't be applied.
    """
    data, unknown = drop(data, listed(at(layer, *path, "drop")))
    data, misfits = set_from(layer, data, (*path, "set"))
    return data, [line(layer, (*path, "drop"), message) for message in unknown] + misfits


def set_from(layer: Any, data: Any, path: Sequence[Step]) -> tuple[Any, list[str]]:
    """Apply the values that are written at `path` in `layer`; returns the data and a line for each that can't be applied."""
    data, misfits = apply(data, mapping(at(layer, *path)), refused=CHOSEN)
    return data, [line(layer, (*path, key), message) for key, message in misfits.items()]


def _merged(path: Path, above: Sequence[Path]) -> tuple[PlacedDict, list[str]]:
    """Return the data of `path` and the problems of its patches; `above` are the files that extend it."""
    data = yaml_positions.read(text_of(path), str(path))
    if not isinstance(data, PlacedDict):
        raise UserError(f"{path}: a recipe is a mapping, got {'nothing' if data is None else repr(data)}")
    if EXTENDS not in data:
        return data, []
    base, found = _merged(_extended(data, path, above), (*above, path))
    merged = PlacedDict(data.place)
    for layer, left_out in ((base, NOT_INHERITED), (data, (EXTENDS, "drop", "set"))):
        for key in layer:
            if key not in left_out:
                merged[key], merged.places[key] = layer[key], layer.places[key]
    patched, more = patch(data, merged)
    return patched, found + more


def _extended(data: PlacedDict, path: Path, above: Sequence[Path]) -> Path:
    """Return the file that `data`, read from `path`, extends. Raises UserError where it can't be extended."""

    def refuse(key: str, message: str) -> UserError:
        return UserError(line(data, (key,), message))

    name = data[EXTENDS]
    if not isinstance(name, str) or "/" in (bare := name.removeprefix(ABOVE)) or bare.strip(".") == "":
        places = f"in the same folder or, as {ABOVE}NAME, the one above"
        raise refuse(EXTENDS, f"must name a recipe file {places}, got {name!r}")
    file = path.parent / name
    if not isfile(file):
        known = sorted(name.removesuffix(bare) + p.name for p in file.parent.glob("*.yaml") if p != path)
        raise refuse(EXTENDS, f"no such recipe, got {name!r}{did_you_mean(name, known)}")
    if file in (*above, path):
        circle = " -> ".join(p.name for p in (*above, path, file))
        raise refuse(EXTENDS, f"goes round in a circle: {circle}")
    for key, kind, word in (("drop", list, "list"), ("set", dict, "mapping")):
        if not isinstance(data.get(key, kind()), kind):
            raise refuse(key, f"must be a {word}, got {data[key]!r}")
    return file


def _printed() -> dict[str, Any]:
    """Return the entries of all files in recipes/printed/, with their places."""
    entries: dict[str, Any] = {}
    for file in yaml_files("printed").values():
        entries |= mapping(_parsed(text_of(file), str(file)))
    return entries


_parsed = cache(yaml_positions.read)


def text_of(path: Path) -> str:
    """Return a YAML file's text. Raises UserError where it can't be read."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise OSError("not a file")
        with path.open(encoding="utf-8") as stream:
            return stream.read(yaml_positions.LONGEST + 1)
    except FileNotFoundError:
        files = (HERE / folder / file.name for folder in NAMED for file in yaml_files(folder).values())
        known = [*map(str, files), *map(str, path.parent.glob("*.yaml"))]
        hint = "a recipe's file, or the name of one in recipes/, such as quickstart"
        raise UserError(f"{path}: no such recipe{did_you_mean(path, known)}", hint=hint) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable: {error}") from None
