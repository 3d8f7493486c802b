"""The one patch language of rows (`drop`, `set`) and of `key=value` overrides.

A dotted path walks mappings by key and lists by their items' `name` (a term's name is its loss unless it says
otherwise) or by number: `stages.distill.objective.vsd.weight`. Input is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from switchkd_cli.errors import did_you_mean

UNWRITTEN = ("checkpoints", "deepspeed")
"""Groups of settings that all have defaults: a recipe need not write them for a path to lead into them."""


class PatchError(Exception):
    """A path or a term name that leads nowhere. The message says what, what it got, and what was near."""


def item_name(item: Any) -> str | None:
    """The name a list item goes by."""
    if not isinstance(item, Mapping):
        return None
    name = item.get("name", item.get("loss"))
    return name if isinstance(name, str) else None


def apply(data: Any, values: Mapping[str, Any], place: str = "override") -> Any:
    """Set each dotted path to its value. The last key may be new; what is before it must exist, or be `UNWRITTEN`."""
    data = copy.deepcopy(data)
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        target = data
        if parents and parents[0] in UNWRITTEN and isinstance(data, dict) and not data.get(parents[0]):
            _put(data, parents[0], _empty(data, place), place)
        for done, step in enumerate(parents):
            target = target[_step(target, step, parents[:done])]
        if isinstance(target, dict):
            key: str | int = last
        else:
            key = _step(target, last, parents)
        _put(target, key, copy.deepcopy(value), place)
    return data


def _put(target: Any, key: str | int, value: Any, place: str) -> None:
    target[key] = value
    if hasattr(target, "places"):
        target.places[key] = place


def _empty(data: dict, place: str) -> dict:
    """A mapping of the kind that `data` is."""
    return type(data)(place) if hasattr(data, "places") else {}


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


def _objectives(data: Any) -> Iterable[list[Any]]:
    stages = data.get("stages") if isinstance(data, Mapping) else None
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, Mapping) and isinstance(stage.get("objective"), list):
            yield stage["objective"]


def _step(target: Any, step: str, done: list[str]) -> str | int:
    """The key or index that `step` means in `target`."""
    if isinstance(target, dict):
        if step in target:
            return step
        known: list[str] = list(target)
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
