"""Turns that have the picture told: the rows that teach a projector to name what it sees."""

import random

from switchkd_cli.playground.text.captions import caption, what
from switchkd_cli.playground.text.facts import PLACE_NAMES, place_of
from switchkd_cli.playground.text.words import say
from switchkd_cli.playground.world import Scene

DESCRIBE = "Describe the image."
DESCRIBE_ZH = "描述这张图。"
LIST = "List the things."
LIST_ZH = "列出图中的东西。"
DESCRIBE_PLACE = "Describe the {}."


def telling(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """An instruction and its answer: the caption (English or Chinese), a list of names, or one place."""
    form = rng.choices((_whole, _whole_zh, _list, _list_zh, _place), weights=(4, 2, 2, 1, 3))[0]
    return form(scene, rng)


def _whole(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return DESCRIBE, caption(scene, rng)


def _whole_zh(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return DESCRIBE_ZH, caption(scene, rng, "zh")


def _list(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return LIST, ", ".join(thing.concept for thing in scene.things)


def _list_zh(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return LIST_ZH, "，".join(say(thing.concept, "zh") for thing in scene.things)


def _place(scene: Scene, rng: random.Random) -> tuple[str, str]:
    items = {place_of(item): item for item in (*scene.things, *([scene.digit] if scene.digit else []))}
    place = rng.choice(PLACE_NAMES)
    return DESCRIBE_PLACE.format(place), what(items[place]) if place in items else "nothing"
