"""Apply patches to a recipe's plain data: the `drop` and `set` of rows, and `key=value` overrides.

A dotted path enters mappings by key, and lists by their items' `name` (a term without a name has its loss's) or by
number: `stages.distill.objective.vsd.weight`. The input is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe.yaml_positions import PlacedDict

OPTIONAL_GROUPS = ("checkpoints", "deepspeed")
"""Groups of settings that all have defaults: a path may lead into them although the recipe does not have them."""


class PatchError(Exception):
    """A path or a term's name that does not exist. The message says what it got and what was near."""


def item_name(item: Any) -> str | None:
    """Return the name of a list item: its `name`, or else its `loss`."""
    name = item.get("name", item.get("loss")) if isinstance(item, Mapping) else None
    return name if isinstance(name, str) else None


def apply(data: Any, values: Mapping[str, Any], place: str = "override") -> Any:
    """Set each dotted path to its value. Only the last key may be new, and the `OPTIONAL_GROUPS`."""
    data = copy.deepcopy(data)
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        group = parents[0] if parents else None
        if group in OPTIONAL_GROUPS and isinstance(data, dict) and not data.get(group):
            _put(data, group, PlacedDict(place), place)
        target = data
        for done, step in enumerate(parents):
            target = target[_step(target, step, parents[:done])]
        key = last if isinstance(target, dict) else _step(target, last, parents)
        _put(target, key, copy.deepcopy(value), place)
    return data


def drop(data: Any, names: Iterable[str]) -> Any:
    """Remove the named terms from every stage's objective."""
    data = copy.deepcopy(data)
    names = list(names)
    objectives = list(_objectives(data))
    known = {name for terms in objectives for name in map(item_name, terms) if name}
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise PatchError(f"no such term, got {name!r}{did_you_mean(name, sorted(known))}")
    for terms in objectives:
        for index in reversed(range(len(terms))):
            if item_name(terms[index]) in names:
                del terms[index]
                if hasattr(terms, "places"):
                    del terms.places[index]
    return data


def _put(target: Any, key: str | int | None, value: Any, place: str) -> None:
    target[key] = value
    if hasattr(target, "places"):
        target.places[key] = place


def _objectives(data: Any) -> Iterator[list[Any]]:
    stages = data.get("stages") if isinstance(data, Mapping) else None
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, Mapping) and isinstance(stage.get("objective"), list):
            yield stage["objective"]


def _step(target: Any, step: str, done: list[str]) -> str | int:
    """Return the key or index that `step` means in `target`."""
    if isinstance(target, dict):
        if step in target:
            return step
        known = [str(key) for key in target]
    elif isinstance(target, list):
        names = [item_name(item) for item in target]
        if step in names:
            return names.index(step)
        if step.isdecimal() and int(step) < len(target):
            return int(step)
        known = [name for name in names if name]
    else:
        raise PatchError(f"{'.'.join(done)} is a value, it has no {step!r}")
    inside = f" in {'.'.join(done)}" if done else ""
    raise PatchError(f"no such field{inside}, got {step!r}{did_you_mean(step, known)}")
