"""Sentences that tell all a scene shows."""

import random

from switchkd_cli.playground.text.facts import place_of
from switchkd_cli.playground.text.words import say, with_article
from switchkd_cli.playground.world import Scene, Sign, Thing


def caption(scene: Scene, rng: random.Random, language: str = "en") -> str:
    """Every thing and sign with its place, and the background, which `rng` puts first or last."""
    items: list[Thing | Sign] = [*scene.things, *([scene.digit] if scene.digit else [])]
    items.sort(key=lambda item: (item.row, item.column))
    parts = [at_place(item, language) for item in items]
    background = (
        f"{say(scene.background, language)}背景" if language == "zh" else f"a {scene.background} background"
    )
    first = rng.random() < 0.5
    parts = [background, *parts] if first else [*parts, background]
    return "，".join(parts) + "。" if language == "zh" else ", ".join(parts) + "."


def at_place(item: Thing | Sign, language: str = "en") -> str:
    """One thing or sign with its place: "a dog at the top left", "左上角有狗"."""
    place = say(place_of(item), language)
    if language == "zh":
        return (
            f"{place}有{say(item.concept, language)}"
            if isinstance(item, Thing)
            else f"{place}有数字{item.value}"
        )
    return f"{what(item)} at the {place}"


def what(item: Thing | Sign) -> str:
    return with_article(item.concept) if isinstance(item, Thing) else f"the number {item.value}"
