"""Yes/no questions about a scene. Each kind is made true or false on demand; the false ones are hard."""

import random
from collections.abc import Callable, Iterable

from switchkd_cli.playground.text.facts import COUNTS, DIGITS, counted
from switchkd_cli.playground.text.words import plural, with_article
from switchkd_cli.playground.world import CATEGORIES, COLOURS, CONCEPTS, PLACE_NAMES, Scene


def _other(pool: Iterable[str], true: str, rng: random.Random) -> str:
    return rng.choice([symbol for symbol in pool if symbol != true])


def _concept(scene: Scene, rng: random.Random, truth: bool) -> str:
    """Return a concept of the scene; with `truth` false, an absent one of a category that is shown."""
    shown = rng.choice(list(scene.concepts))
    if truth:
        return shown
    return rng.choice([name for name in CONCEPTS if CONCEPTS[name] == CONCEPTS[shown] and name not in scene.concepts])


def _existence(scene: Scene, rng: random.Random, truth: bool) -> str:
    return f"Is there {with_article(_concept(scene, rng, truth))} in the image?"


def _category(scene: Scene, rng: random.Random, truth: bool) -> str:
    shown = scene.categories
    names = list(shown) if truth else [name for name in CATEGORIES if name not in shown]
    return f"Is there {with_article(rng.choice(names))} in the image?"


def _count(scene: Scene, rng: random.Random, truth: bool) -> str:
    symbol, times = counted(scene, rng)
    number = str(times) if truth else _other(COUNTS, str(times), rng)
    return f"Is there a total of {number} {symbol if number == '1' else plural(symbol)} in the image?"


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
        concept = _concept(scene, rng, False)
    return f"Is there {with_article(concept)} at the {place}?"


def _relation(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    """Ask whether one unique thing is to the left or right of, above or below another."""
    if not (relations := scene.relations):
        return None
    first, side, second = rng.choice(relations)
    phrase = f"to the {side} of" if side in ("left", "right") else side
    return f"Is the {first} {phrase} the {second}?" if truth else f"Is the {second} {phrase} the {first}?"


def _color(scene: Scene, rng: random.Random, truth: bool) -> str:
    return f"Is the background {scene.background if truth else _other(COLOURS, scene.background, rng)}?"


def _number(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    if scene.digit is None:
        return None
    true = scene.digit.name
    return f"Is the number on the sign {true if truth else _other(DIGITS, true, rng)}?"


STATEMENTS: dict[str, Callable[[Scene, random.Random, bool], str | None]] = {
    "existence": _existence,
    "category": _category,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "color": _color,
    "OCR": _number,
}
