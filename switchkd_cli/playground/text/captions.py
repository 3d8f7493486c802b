"""Captions, and turns in which the user asks for a description of the image."""

import random

from switchkd_cli.playground.text.words import say, with_article
from switchkd_cli.playground.world import PLACE_NAMES, Placed, Scene

DESCRIBE = "Describe the image."
DESCRIBE_ZH = "描述这张图。"
LIST = "List the things."
LIST_ZH = "列出图中的东西。"
DESCRIBE_PLACE = "Describe the {}."


def caption(scene: Scene, rng: random.Random, language: str = "en") -> str:
    """Return one of the scene's two captions."""
    first, last = captions(scene, language)
    return first if rng.random() < 0.5 else last


def captions(scene: Scene, language: str = "en") -> tuple[str, str]:
    """Return sentences with every thing and sign, its place, and the background, which is first in one, last in the other."""
    items = sorted(scene.items, key=lambda item: (item.row, item.column))
    if language == "zh":
        parts = [f"{say(item.place, 'zh')}有{_name(item, 'zh')}" for item in items]
        background = f"{say(scene.background, 'zh')}背景"
    else:
        parts = [f"{_name(item)} at the {item.place}" for item in items]
        background = f"a {scene.background} background"
    comma, stop = ("，", "。") if language == "zh" else (", ", ".")
    return comma.join([background, *parts]) + stop, comma.join([*parts, background]) + stop


def description_turn(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return an instruction and its answer: a caption (English or Chinese), a list of names, or one place."""
    forms = (DESCRIBE, DESCRIBE_ZH, LIST, LIST_ZH, DESCRIBE_PLACE)
    form = rng.choices(forms, weights=(4, 2, 2, 1, 3))[0]
    if form in (DESCRIBE, DESCRIBE_ZH):
        return form, caption(scene, rng, "en" if form == DESCRIBE else "zh")
    if form == LIST:
        return form, ", ".join(thing.name for thing in scene.things)
    if form == LIST_ZH:
        return form, "，".join(say(thing.name, "zh") for thing in scene.things)
    items = {item.place: item for item in scene.items}
    place = rng.choice(PLACE_NAMES)
    return form.format(place), _name(items[place]) if place in items else "nothing"


def _name(item: Placed, language: str = "en") -> str:
    if language == "zh":
        return f"数字{item.name}" if item.is_sign else say(item.name, "zh")
    return f"the number {item.name}" if item.is_sign else with_article(item.name)
