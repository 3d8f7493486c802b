"""What is true of a scene: facts that an open question or a multiple choice asks for, and yes/no questions.

A yes/no question is made true or false on demand.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TypeVar

from switchkd_cli.playground.text.words import plural, with_article
from switchkd_cli.playground.world import CATEGORIES, COLOURS, CONCEPTS, NAMES, PLACE_NAMES, SIDES, Scene, one_scene

COUNTS = ("1", "2", "3", "4")
DIGITS = tuple("0123456789")

What = TypeVar("What")


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
    times = _counts(scene)
    return rng.choices(list(times.items()), weights=[4**n for n in times.values()])[0]


def _counts(scene: Scene) -> Counter[str]:
    return scene.concepts | scene.categories | Counter({"thing": len(scene.things)})


def _name(scene: Scene, rng: random.Random) -> Fact:
    thing = rng.choice(scene.things)
    return Fact("name", thing.name, NAMES, {"place": thing.place}, tuple(scene.concepts))


def _category(scene: Scene, rng: random.Random) -> Fact:
    thing = rng.choice(scene.things)
    return Fact("category", CONCEPTS[thing.name], CATEGORIES, {"place": thing.place}, tuple(scene.categories))


def _place(scene: Scene, rng: random.Random) -> Fact | None:
    if not (things := scene.unique_things):
        return None
    thing = rng.choice(things)
    return Fact("place", thing.place, PLACE_NAMES, {"thing": thing.name})


def _count(scene: Scene, rng: random.Random) -> Fact:
    symbol, times = counted(scene, rng)
    return Fact("count", str(times), COUNTS, {"thing": symbol, "things": plural(symbol)})


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
    pool = tuple(name for name in NAMES if name != thing.name)
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
    "color": lambda scene, rng: Fact("color", scene.background, tuple(COLOURS)),
    "place": _place,
    "count": _count,
    "number": lambda scene, rng: Fact("number", scene.digit.name, DIGITS) if scene.digit else None,
    "neighbour": _neighbour,
    "compare": _compare,
}


def _if(truth: bool, true: str, pool: Iterable[str], rng: random.Random) -> str:
    """Return the true symbol, or another one of the pool."""
    return true if truth else rng.choice([symbol for symbol in pool if symbol != true])


def said(
    scene: Scene,
    rng: random.Random,
    truth: bool,
    facts: Callable[[Scene], Collection[What]],
    draw: Callable[[Scene, random.Random], What] | None = None,
) -> What:
    """Return one of the `facts` of the scene that is false of another scene, or the other way round.

    Both scenes are drawn alike, so that what is said doesn't reveal whether it is true: with absent things drawn by
    their frequency, a rule that only knew names was right on 76 % of questions for existence. `draw` chooses (default:
    evenly).
    """
    while True:
        other = one_scene(scene.split, rng)
        true, false = (scene, other) if truth else (other, scene)
        what = draw(true, rng) if draw else rng.choice(list(facts(true)))
        if what not in facts(false):
            return what


def shown(scene: Scene, rng: random.Random, truth: bool) -> str:
    """Return a concept that is shown, or with `truth` false one that isn't."""
    return said(scene, rng, truth, attrgetter("concepts"))


def _is_there(scene: Scene, rng: random.Random, truth: bool, *, kind: str) -> str:
    """Ask for one of the `concepts`, or of the `categories`."""
    return f"Is there {with_article(said(scene, rng, truth, attrgetter(kind)))} in the image?"


def _total(scene: Scene, rng: random.Random, truth: bool) -> str:
    symbol, times = said(scene, rng, truth, lambda scene: _counts(scene).items(), counted)
    return f"Is there a total of {times} {symbol if times == 1 else plural(symbol)} in the image?"


def _position(scene: Scene, rng: random.Random, truth: bool) -> str:
    """Ask for a concept at a place; a false place is that of another thing where there is one."""
    thing = rng.choice(scene.things)
    own = {t.place for t in scene.things if t.name == thing.name}
    taken = [t.place for t in scene.things if t.place not in own]
    free = [place for place in PLACE_NAMES if place not in own]
    concept, place = thing.name, thing.place
    if not truth and free:
        place = rng.choice(taken or free)
    elif not truth:
        concept = shown(scene, rng, False)
    return f"Is there {with_article(concept)} at the {place}?"


def _relation(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    """Ask whether one unique thing is to the left or right of, above or below another."""
    if not (relations := scene.relations):
        return None
    first, side, second = rng.choice(relations)
    phrase = f"to the {side} of" if side in ("left", "right") else side
    return f"Is the {first} {phrase} the {second}?" if truth else f"Is the {second} {phrase} the {first}?"


STATEMENTS: dict[str, Callable[[Scene, random.Random, bool], str | None]] = {
    "existence": partial(_is_there, kind="concepts"),
    "category": partial(_is_there, kind="categories"),
    "count": _total,
    "position": _position,
    "relation": _relation,
    "color": lambda scene, rng, truth: f"Is the background {_if(truth, scene.background, COLOURS, rng)}?",
    "OCR": lambda scene, rng, truth: (
        f"Is the number on the sign {_if(truth, scene.digit.name, DIGITS, rng)}?" if scene.digit else None
    ),
}
