"""Apply patches to a recipe's plain data: the `drop` and `set` of rows, and `key=value` overrides.

A dotted path enters mappings by key, and lists by their items' `name` (a term without a name has its loss's) or by
number: `stages.distill.objective.vsd.weight`. The input is never changed.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe.yaml_positions import PlacedDict, Step, at, item_name, listed, mappings

OPTIONAL_GROUPS = ("checkpoints", "deepspeed", "switch")
"""Groups of settings that all have defaults: a path may lead into them although the recipe does not have them."""


class PathError(Exception):
    """A path that does not exist. The message says what it got and what was near."""


def apply(data: Any, values: Mapping[str, Any], place: str = "override") -> tuple[Any, dict[str, str]]:
    """Set each dotted path to its value, where it exists. Only the last key may be new, and the `OPTIONAL_GROUPS`.

    Returns the changed data and, by path, why a value could not be set. Values were written at `place`, or where `values`
    was read from.
    """
    data, misfits = copy.deepcopy(data), {}
    for dotted, value in values.items():
        try:
            _set(data, dotted, value, getattr(values, "places", {}).get(dotted, place))
        except PathError as error:
            misfits[dotted] = str(error)
    return data, misfits


def drop(data: Any, names: Sequence[Any]) -> tuple[Any, list[str]]:
    """Remove the named terms from every stage's objective. Returns the changed data, and a message for each unknown name."""
    data = copy.deepcopy(data)
    objectives = [listed(stage.get("objective")) for _, stage in mappings(at(data, "stages"))]
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
        if step.isdecimal() and int(step) < len(target):
            return int(step)
        known = [name for name in names if name]
    else:
        raise PathError(f"{'.'.join(done)} is a value, it has no {step!r}")
    inside = f" in {'.'.join(done)}" if done else ""
    raise PathError(f"no such field{inside}, got {step!r}{did_you_mean(step, known)}")
