"""Questions about words alone, without an image."""

import random

from switchkd_cli.playground.text.questions import Turn
from switchkd_cli.playground.text.words import SYMBOLS, say, with_article
from switchkd_cli.playground.world import CATEGORIES, CONCEPTS, NAMES, drawn


def word_turn(rng: random.Random) -> Turn:
    """Return one question about a word, and its answer."""
    return rng.choice((_category, _is_a, _in_chinese, _in_english))(rng)


def _category(rng: random.Random) -> Turn:
    concept = drawn(NAMES, rng)
    if rng.random() < 0.3:
        return f"{say(concept, 'zh')}是哪一类？", say(CONCEPTS[concept], "zh")
    return f"What kind of thing is {with_article(concept)}?", CONCEPTS[concept]


def _is_a(rng: random.Random) -> Turn:
    concept, truth = drawn(NAMES, rng), rng.random() < 0.5
    own = CONCEPTS[concept]
    category = own if truth else rng.choice([name for name in CATEGORIES if name != own])
    return f"Is {with_article(concept)} {with_article(category)}?", "yes" if truth else "no"


def _in_chinese(rng: random.Random) -> Turn:
    word = _word(rng)
    return f"What is {word} in Chinese?", say(word, "zh")


def _in_english(rng: random.Random) -> Turn:
    word = _word(rng)
    return f"What is {say(word, 'zh')} in English?", word


def _word(rng: random.Random) -> str:
    """Return a concept, or now and then one of the other words, but not "thing"."""
    return drawn(NAMES, rng) if rng.random() < 0.8 else rng.choice([s for s in SYMBOLS[:-1] if s not in CONCEPTS])
