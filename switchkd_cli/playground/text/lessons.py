"""Turns without an image: they teach a language model the world's words and questions about descriptions."""

import random

from switchkd_cli.playground.text.captions import DESCRIBE, DESCRIBE_ZH, caption, description_turn
from switchkd_cli.playground.text.prompts import prompt
from switchkd_cli.playground.text.questions import ask, suits
from switchkd_cli.playground.text.words import STYLES, SYMBOLS, say, with_article
from switchkd_cli.playground.world import CATEGORIES, CONCEPTS, Scene


def lesson(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return one turn. Those about the scene open with its caption, so that they can be answered without the image."""
    form = rng.choices((_question, _description, _category, _is_a, _word), weights=(8, 2, 1, 1, 1))[0]
    return form(scene, rng)


def _question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return a benchmark question about a description; a Chinese question has a Chinese description."""
    style = rng.choice([style for style in STYLES if suits(scene, style)])
    question = ask(scene, style, rng)
    return f"{caption(scene, rng, question.language)}\n{prompt(question)}", question.answer


def _description(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return a request to rewrite the description: in the other language, as a list, or for one place."""
    instruction, answer = description_turn(scene, rng)
    # The choice is drawn even where it is not used: the order of random numbers is part of the data.
    language = {DESCRIBE: "zh", DESCRIBE_ZH: "en"}.get(instruction, rng.choice(("en", "zh")))
    return f"{caption(scene, rng, language)}\n{instruction}", answer


def _category(scene: Scene, rng: random.Random) -> tuple[str, str]:
    concept, category = rng.choice(list(CONCEPTS.items()))
    if rng.random() < 0.3:
        return f"{say(concept, 'zh')}是哪一类？", say(category, "zh")
    return f"What kind of thing is {with_article(concept)}?", category


def _is_a(scene: Scene, rng: random.Random) -> tuple[str, str]:
    concept, own = rng.choice(list(CONCEPTS.items()))
    truth = rng.random() < 0.5
    category = own if truth else rng.choice([name for name in CATEGORIES if name != own])
    return f"Is {with_article(concept)} {with_article(category)}?", "yes" if truth else "no"


def _word(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return a word in the other language."""
    word = rng.choice(SYMBOLS[:-1])  # all but "thing"
    if rng.random() < 0.5:
        return f"What is {word} in Chinese?", say(word, "zh")
    return f"What is {say(word, 'zh')} in English?", word
