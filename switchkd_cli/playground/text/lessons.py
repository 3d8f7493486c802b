"""Turns without a picture: they teach a language model the world's words and questions about descriptions."""

import random

from switchkd_cli.playground.text.captions import caption
from switchkd_cli.playground.text.questions import STYLES, ask, prompt, suits
from switchkd_cli.playground.text.tellings import DESCRIBE, DESCRIBE_ZH, telling
from switchkd_cli.playground.text.words import say, with_article
from switchkd_cli.playground.world import CATEGORIES, COLOURS, CONCEPTS, PLACES, Scene

_WORDS = (*CONCEPTS, *CATEGORIES, *COLOURS, *(place.name for place in PLACES.values()))


def lesson(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One turn. Those about the scene open with its caption, to be answered without seeing it."""
    form = rng.choices((_read_question, _read_telling, _kind, _is_a, _word), weights=(8, 2, 1, 1, 1))[0]
    return form(scene, rng)


def _read_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A benchmark question about a description. Chinese questions get a Chinese description."""
    style = rng.choice([style for style in STYLES if suits(scene, style)])
    question = ask(scene, style, rng)
    return f"{caption(scene, rng, question.language)}\n{prompt(question)}", question.answer


def _read_telling(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """The description told again: in the other language, as a list or by place."""
    instruction, answer = telling(scene, rng)
    told = {DESCRIBE: "zh", DESCRIBE_ZH: "en"}.get(instruction, rng.choice(("en", "zh")))
    return f"{caption(scene, rng, told)}\n{instruction}", answer


def _kind(scene: Scene, rng: random.Random) -> tuple[str, str]:
    concept = rng.choice(list(CONCEPTS.values()))
    if rng.random() < 0.3:
        return f"{concept.zh}是哪一类？", say(concept.category, "zh")
    return f"What kind of thing is {with_article(concept.name)}?", concept.category


def _is_a(scene: Scene, rng: random.Random) -> tuple[str, str]:
    concept = rng.choice(list(CONCEPTS.values()))
    truth = rng.random() < 0.5
    others = [name for name in CATEGORIES if name != concept.category]
    category = concept.category if truth else rng.choice(others)
    return f"Is {with_article(concept.name)} {with_article(category)}?", "yes" if truth else "no"


def _word(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A word in the other language."""
    word = rng.choice(_WORDS)
    if rng.random() < 0.5:
        return f"What is {word} in Chinese?", say(word, "zh")
    return f"What is {say(word, 'zh')} in English?", word
