"""True facts about a scene that an open question or a multiple choice can ask for."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from switchkd_cli.playground.text.words import plural
from switchkd_cli.playground.world import CATEGORIES, COLOURS, CONCEPTS, PLACES, Scene, Thing

COUNTS = ("1", "2", "3", "4")
DIGITS = tuple("0123456789")
PLACE_NAMES = tuple(place.name for place in PLACES.values())


@dataclass(frozen=True)
class Fact:
    """`answer` is a symbol (see words.py), `pool` every symbol that could plausibly answer, the answer among
    them; `near` those of the pool that the picture itself suggests."""

    kind: str
    answer: str
    pool: tuple[str, ...]
    slots: dict[str, str] = field(default_factory=dict)
    near: tuple[str, ...] = ()


def place_of(thing: Thing) -> str:
    return PLACES[thing.row, thing.column].name


def concepts(scene: Scene) -> Counter[str]:
    return Counter(thing.concept for thing in scene.things)


def categories(scene: Scene) -> Counter[str]:
    return Counter(CONCEPTS[thing.concept].category for thing in scene.things)


def single(scene: Scene) -> list[Thing]:
    """The things whose concept occurs once, so that "the dog" is clear."""
    times = concepts(scene)
    return [thing for thing in scene.things if times[thing.concept] == 1]


def counted(scene: Scene, rng: random.Random) -> tuple[str, int]:
    """A concept, a category or "thing", and how often it is shown; large counts are rarer, so preferred."""
    times = concepts(scene) | categories(scene) | Counter({"thing": len(scene.things)})
    return rng.choices(list(times.items()), weights=[4**n for n in times.values()])[0]


def _name(scene: Scene, rng: random.Random) -> Fact:
    thing = rng.choice(scene.things)
    return Fact("name", thing.concept, tuple(CONCEPTS), {"place": place_of(thing)}, tuple(concepts(scene)))


def _category(scene: Scene, rng: random.Random) -> Fact:
    thing = rng.choice(scene.things)
    answer = CONCEPTS[thing.concept].category
    return Fact("category", answer, tuple(CATEGORIES), {"place": place_of(thing)}, tuple(categories(scene)))


def _color(scene: Scene, rng: random.Random) -> Fact:
    return Fact("color", scene.background, tuple(COLOURS))


def _place(scene: Scene, rng: random.Random) -> Fact | None:
    if not (things := single(scene)):
        return None
    thing = rng.choice(things)
    return Fact("place", place_of(thing), PLACE_NAMES, {"thing": thing.concept})


def _count(scene: Scene, rng: random.Random) -> Fact:
    symbol, times = counted(scene, rng)
    return Fact("count", str(times), COUNTS, {"thing": symbol, "things": plural(symbol)})


def _number(scene: Scene, rng: random.Random) -> Fact | None:
    return Fact("number", str(scene.digit.value), DIGITS) if scene.digit else None


def _neighbour(scene: Scene, rng: random.Random) -> Fact | None:
    """What lies beside, above or below a thing that is clear."""
    steps = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
    at = {(thing.row, thing.column): thing for thing in scene.things}
    pairs = [
        (thing, side, at[cell])
        for thing in single(scene)
        for side, (down, across) in steps.items()
        if (cell := (thing.row + down, thing.column + across)) in at
    ]
    if not pairs:
        return None
    thing, side, other = rng.choice(pairs)
    pool = tuple(name for name in CONCEPTS if name != thing.concept)
    near = tuple(name for name in concepts(scene) if name != thing.concept)
    return Fact(side, other.concept, pool, {"thing": thing.concept}, near)


def _compare(scene: Scene, rng: random.Random) -> Fact | None:
    """Which of two clear things lies further left, or higher."""
    pairs = [
        (kind, first, second)
        for first in single(scene)
        for second in single(scene)
        for kind, before in (("leftmost", first.column < second.column), ("topmost", first.row < second.row))
        if before
    ]
    if not pairs:
        return None
    kind, first, second = rng.choice(pairs)
    return Fact(kind, first.concept, (first.concept, second.concept))


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
