"""The playground's words and phrases in English and Chinese; English names are the symbols that `say` translates.

Also captions, and turns in which the user asks for a description of the image.
"""

import random
from typing import Any

from switchkd_cli.package_data import read_yaml
from switchkd_cli.playground.world import PLACE_NAMES, WORDS, Placed, Scene

_ZH: dict[str, str] = {name: entry["zh"] for group in WORDS.values() for name, entry in group.items()}
SYMBOLS = tuple(_ZH)

_WORDINGS = read_yaml(__file__, "wordings.yaml")
STYLES: dict[str, dict[str, Any]] = _WORDINGS["styles"]
"""The tasks whose manner of asking the playground has, and that manner."""
ASK: dict[str, dict[str, str]] = _WORDINGS["ask"]
ASK_HINTED: dict[str, dict[str, str]] = _WORDINGS["ask_hinted"]
HINT: dict[str, str] = _WORDINGS["hint"]
PHRASES: dict[str, dict[str, str]] = _WORDINGS["phrases"]


def say(symbol: str, language: str = "en") -> str:
    """Return a concept, category, colour, place or number in a language ("en" or "zh")."""
    return symbol if language == "en" else _ZH.get(symbol, symbol)


def phrase(name: str, language: str = "en", *words: str) -> str:
    """Return one of `PHRASES` in a language, with these words in their places."""
    return PHRASES[name][language].format(*words)


def fill(template: dict[str, str], slots: dict[str, str], language: str = "en") -> str:
    """Return a question from the tables above in a language, its slots filled."""
    return template[language].format(**{slot: say(symbol, language) for slot, symbol in slots.items()})


def with_article(name: str) -> str:
    usual = "an" if name[0] in "aeiou" else "a"
    return f"{WORDS['concepts'].get(name, {}).get('article', usual)} {name}"


def plural(name: str) -> str:
    """Return the plural of a concept or a category."""
    return WORDS["concepts"].get(name, {}).get("plural", f"{name}s")


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
