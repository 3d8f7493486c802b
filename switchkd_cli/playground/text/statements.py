"""Yes/no questions about a scene: each made true or false on demand, the false ones hard."""

import random
from collections.abc import Callable

from switchkd_cli.playground.text.facts import (
    COUNTS,
    DIGITS,
    PLACE_NAMES,
    categories,
    concepts,
    counted,
    place_of,
    single,
)
from switchkd_cli.playground.text.words import plural, with_article
from switchkd_cli.playground.world import CATEGORIES, COLOURS, CONCEPTS, Scene

Statement = Callable[[Scene, random.Random, bool], str | None]


def _other(pool: tuple[str, ...], true: str, rng: random.Random) -> str:
    return rng.choice([symbol for symbol in pool if symbol != true])


def _shown_or_not(scene: Scene, rng: random.Random, truth: bool) -> str:
    """A concept of the scene, or one that is absent but of a category that is shown."""
    shown = rng.choice(list(concepts(scene)))
    if truth:
        return shown
    category = CONCEPTS[shown].category
    absent = [name for name, c in CONCEPTS.items() if c.category == category and name not in concepts(scene)]
    return rng.choice(absent)


def _existence(scene: Scene, rng: random.Random, truth: bool) -> str:
    return f"Is there {with_article(_shown_or_not(scene, rng, truth))} in the image?"


def _category(scene: Scene, rng: random.Random, truth: bool) -> str:
    shown = categories(scene)
    name = rng.choice(
        list(shown) if truth else [category for category in CATEGORIES if category not in shown]
    )
    return f"Is there {with_article(name)} in the image?"


def _count(scene: Scene, rng: random.Random, truth: bool) -> str:
    symbol, times = counted(scene, rng)
    true = str(times)
    number = true if truth else _other(COUNTS, true, rng)
    return f"Is there a total of {number} {symbol if number == '1' else plural(symbol)} in the image?"


def _position(scene: Scene, rng: random.Random, truth: bool) -> str:
    """Whether a concept is at a place; a false place is that of another thing where there is one."""
    thing = rng.choice(scene.things)
    at = {place_of(t) for t in scene.things if t.concept == thing.concept}
    elsewhere = [place_of(t) for t in scene.things if place_of(t) not in at]
    free = [place for place in PLACE_NAMES if place not in at]
    if truth or not free:
        return _at(thing.concept if truth else _shown_or_not(scene, rng, False), place_of(thing))
    return _at(thing.concept, rng.choice(elsewhere or free))


def _at(concept: str, place: str) -> str:
    return f"Is there {with_article(concept)} at the {place}?"


def _relation(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    """Whether one clear thing lies left of, right of, above or below another."""
    pairs = [
        (first.concept, phrase, second.concept)
        for first in single(scene)
        for second in single(scene)
        for phrase, holds in (
            ("to the left of", first.column < second.column),
            ("to the right of", first.column > second.column),
            ("above", first.row < second.row),
            ("below", first.row > second.row),
        )
        if holds
    ]
    if not pairs:
        return None
    first, phrase, second = rng.choice(pairs)
    if not truth:
        first, second = second, first
    return f"Is the {first} {phrase} the {second}?"


def _color(scene: Scene, rng: random.Random, truth: bool) -> str:
    colour = scene.background if truth else _other(tuple(COLOURS), scene.background, rng)
    return f"Is the background {colour}?"


def _number(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    if scene.digit is None:
        return None
    true = str(scene.digit.value)
    return f"Is the number on the sign {true if truth else _other(DIGITS, true, rng)}?"


STATEMENTS: dict[str, Statement] = {
    "existence": _existence,
    "category": _category,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "color": _color,
    "OCR": _number,
}
