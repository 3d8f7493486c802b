"""True facts about a scene that an open question or a multiple choice can ask for."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from switchkd_cli.playground.text.words import plural
from switchkd_cli.playground.world import CATEGORIES, COLOURS, CONCEPTS, PLACE_NAMES, SIDES, Scene

COUNTS = ("1", "2", "3", "4")
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Fact:
    """`answer` is a symbol (see words.py); `pool` has every symbol that could plausibly answer, with the answer;
    `near` has those of the pool that the image itself suggests."""

    kind: str
    answer: str
    pool: tuple[str, ...]
    slots: dict[str, str] = field(default_factory=dict)
    near: tuple[str, ...] = ()


def counted(scene: Scene, rng: random.Random) -> tuple[str, int]:
    """Return a concept, a category or "thing", and how often it is shown; large counts are rarer, so preferred."""
    times = scene.concepts | scene.categories | Counter({"thing": len(scene.things)})
    return rng.choices(list(times.items()), weights=[4**n for n in times.values()])[0]


def _name(scene: Scene, rng: random.Random) -> Fact:
    thing = rng.choice(scene.things)
    return Fact("name", thing.name, tuple(CONCEPTS), {"place": thing.place}, tuple(scene.concepts))


def _category(scene: Scene, rng: random.Random) -> Fact:
    thing = rng.choice(scene.things)
    return Fact("category", CONCEPTS[thing.name], CATEGORIES, {"place": thing.place}, tuple(scene.categories))


def _color(scene: Scene, rng: random.Random) -> Fact:
    return Fact("color", scene.background, tuple(COLOURS))


def _place(scene: Scene, rng: random.Random) -> Fact | None:
    if not (things := scene.unique_things):
        return None
    thing = rng.choice(things)
    return Fact("place", thing.place, PLACE_NAMES, {"thing": thing.name})


def _count(scene: Scene, rng: random.Random) -> Fact:
    symbol, times = counted(scene, rng)
    return Fact("count", str(times), COUNTS, {"thing": symbol, "things": plural(symbol)})


def _number(scene: Scene, rng: random.Random) -> Fact | None:
    return Fact("number", scene.digit.name, DIGITS) if scene.digit else None


def _neighbour(scene: Scene, rng: random.Random) -> Fact | None:
    """What is to the left or right of, above or below a unique thing."""
    at = {(thing.row, thing.column): thing for thing in scene.things}
    pairs = [
        (thing, side, at[cell])
        for thing in scene.unique_things
        for side, (down, across) in SIDES.items()
        if (cell := (thing.row + down, thing.column + across)) in at
    ]
    if not pairs:
        return None
    thing, side, other = rng.choice(pairs)
    pool = tuple(name for name in CONCEPTS if name != thing.name)
    near = tuple(name for name in scene.concepts if name != thing.name)
    return Fact(side, other.name, pool, {"thing": thing.name}, near)


def _compare(scene: Scene, rng: random.Random) -> Fact | None:
    """Which of two unique things is further left, or higher."""
    kinds = {"left": "leftmost", "above": "topmost"}
    relations = [relation for relation in scene.relations if relation[1] in kinds]
    if not relations:
        return None
    answer, side, other = rng.choice(relations)
    return Fact(kinds[side], answer, (answer, other))


FACTS: dict[str, Callable[[Scene, random.Random], Fact | None]] = {
    "name": _name,
    "category": _category,
    "color": _color,
    "place": _place,
    "count": _count,
    "number": _number,
    "neighbour": _neighbour,
    "compare": _compare,
}
