"""Captions, and turns in which the user asks for a description of the image."""

import random

from switchkd_cli.playground.text.words import phrase, say, with_article
from switchkd_cli.playground.world import PLACE_NAMES, Placed, Scene


def caption(scene: Scene, rng: random.Random, language: str = "en") -> str:
    """Return one of the scene's two captions."""
    first, last = captions(scene, language)
    return first if rng.random() < 0.5 else last


def captions(scene: Scene, language: str = "en") -> tuple[str, str]:
    """Return sentences with every thing and sign, its place, and the background, which is first in one, last in the other."""
    items = sorted(scene.items, key=lambda item: (item.row, item.column))
    parts = [phrase("thing at place", language, _name(i, language), say(i.place, language)) for i in items]
    background = phrase("background", language, say(scene.background, language))
    comma, stop = phrase("comma", language), phrase("stop", language)
    return comma.join([background, *parts]) + stop, comma.join([*parts, background]) + stop


def description_turn(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return an instruction and its answer: a caption (English or Chinese), a list of names, or one place."""
    forms = [(what, language) for what in ("describe", "list") for language in ("en", "zh")]
    what, language = rng.choices([*forms, ("describe place", "en")], weights=(4, 2, 2, 1, 3))[0]
    if what == "describe":
        return phrase(what, language), caption(scene, rng, language)
    if what == "list":
        names = [say(thing.name, language) for thing in scene.things]
        return phrase(what, language), phrase("comma", language).join(names)
    items = {item.place: item for item in scene.items}
    place = rng.choice(PLACE_NAMES)
    return phrase(what, language, place), _name(items[place]) if place in items else "nothing"


def _name(item: Placed, language: str = "en") -> str:
    if item.is_sign:
        return phrase("digit", language, item.name)
    return with_article(item.name) if language == "en" else say(item.name, language)
