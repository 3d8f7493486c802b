"""Turns about lists of names: which are there, an option's letter, a letter's option.

Their answers are long, and each word follows from the options or from the word before it, as in "dog yes, cat no". From
such rows small models learn within minutes to look something up; from single short answers they didn't
(docs/playground.md).
"""

import random
from collections.abc import Collection, Sequence

from scripts.playground_rows.phrases import phrase
from switchkd_cli.playground.text.questions import LETTER, LETTER_ZH, LETTERS, SHORT, Turn
from switchkd_cli.playground.text.words import SYMBOLS, say, with_article
from switchkd_cli.playground.world import CONCEPTS, EXPONENT, NAMES, drawn

OTHERS = 0.15  # the share of words in lists that aren't things: categories, colours, places, numbers
OTHER_WORDS = [symbol for symbol in SYMBOLS if symbol not in CONCEPTS] + [str(digit) for digit in range(10)]


def language_of(rng: random.Random) -> str:
    """Return a language: one time in four Chinese."""
    return "zh" if rng.random() < 0.25 else "en"


def roll(there: Collection[str], rng: random.Random, language: str, count: int = 6, exponent: float = EXPONENT) -> Turn:
    """Ask of `count` things whether each is there; about half are."""
    names = _half_there(there, rng, count, exponent)
    yes, no = phrase("yes", language), phrase("no", language)
    answer = phrase("comma", language).join(say(name, language) + (yes if name in there else no) for name in names)
    return "\n".join([phrase("check", language), *(say(name, language) for name in names)]), answer


def checked(there: Collection[str], rng: random.Random, language: str, exponent: float = EXPONENT) -> Turn:
    """Ask of four options whether each is there, and answer with their letters: "A no, B yes", and so on."""
    options = _half_there(there, rng, len(LETTERS), exponent)
    yes, no = phrase("yes", language), phrase("no", language)
    answer = (f"{letter}{yes if name in there else no}" for letter, name in zip(LETTERS, options, strict=True))
    return choice(phrase("check", language), options, language), phrase("comma", language).join(answer)


def shown(there: Collection[str], rng: random.Random, language: str, exponent: float = EXPONENT) -> Turn:
    """Ask which one of four options is there: for its name, its letter or both."""
    options = _options(rng.choice(sorted(there)), rng, exponent, without=there)
    answer = next(name for name in options if name in there)
    return chosen(phrase("shown", language), options, answer, rng, language)


def chosen(question: str, options: Sequence[str], answer: str, rng: random.Random, language: str) -> Turn:
    """Ask which of the options is right: for its name, its letter or both."""
    asked = choice(question, options, language)
    name, letter = say(answer, language), LETTERS[options.index(answer)]
    form = rng.random()
    if form < 0.3:
        return asked, f"{name}{phrase('gap', language)}{letter}"
    if form < 0.6:
        return asked + SHORT, name
    return asked + (LETTER_ZH if language == "zh" else LETTER), letter


def again(rng: random.Random, language: str, there: Collection[str] = (), exponent: float = EXPONENT) -> Turn:
    """Ask for the options again, in another order: from letters to names."""
    options = _options(_some(there, rng, exponent), rng, exponent)
    order = rng.sample(range(len(options)), len(options))
    letters = ", ".join(LETTERS[index] for index in order)
    answer = phrase("comma", language).join(
        f"{LETTERS[index]}{phrase('gap', language)}{say(options[index], language)}" for index in order
    )
    return choice(phrase("again", language, letters), options, language), answer


def letters(rng: random.Random, language: str, there: Collection[str] = (), exponent: float = EXPONENT) -> Turn:
    """Ask for the letters of some options: from names to letters."""
    options = _options(_some(there, rng, exponent), rng, exponent)
    order = rng.sample(range(len(options)), rng.randint(1, len(options)))
    names = phrase("comma", language).join(say(options[index], language) for index in order)
    answer = phrase("comma", language).join(
        f"{say(options[index], language)}{phrase('gap', language)}{LETTERS[index]}" for index in order
    )
    return choice(phrase("letters of", language, names), options, language), answer


def choice(question: str, options: Sequence[str], language: str) -> str:
    """Return a question with its options, one a line, each behind its letter."""
    lines = (f"{letter}. {say(option, language)}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines])


def list_row(rng: random.Random, count: int) -> list[Turn]:
    """Return a conversation of `count` turns about a list of two to eight things, which its first text names.

    It is in one language: to look up a name that was given in the other takes a dictionary, which is learnt later. Some
    lists are of few frequent things, with which looking up is learnt sooner, some of all things evenly, with which answers
    can't be guessed from the names.
    """
    language, exponent = language_of(rng), rng.uniform(0, 2 * EXPONENT)
    there: list[str] = []
    for _ in range(rng.randint(2, 8)):
        there.append(_draw(rng, there, exponent))
    makes = {
        lambda: roll(there, rng, language, 8, exponent=exponent): 3,
        lambda: checked(there, rng, language, exponent=exponent): 3,
        lambda: shown(there, rng, language, exponent=exponent): 3,
        lambda: again(rng, language, exponent=exponent): 1,
        lambda: letters(rng, language, exponent=exponent): 2,
    }
    turns = [make() for make in rng.choices(list(makes), weights=list(makes.values()), k=count)]
    # An article tells the names of the list from those of later turns.
    named = (with_article(name) if language == "en" else f"有{say(name, 'zh')}" for name in there)
    turns[0] = (f"{phrase('comma', language).join(named)}{phrase('stop', language)}\n{turns[0][0]}", turns[0][1])
    return turns


def _half_there(there: Collection[str], rng: random.Random, count: int, exponent: float) -> list[str]:
    """Return `count` different names, about half of them of `there`, and at least one not."""
    names = rng.sample(sorted(there), min(len(there), rng.randint(1, count - 1)))
    while len(names) < count:
        names.append(_draw(rng, {*there, *names}, exponent))
    return rng.sample(names, count)


def _draw(rng: random.Random, without: Collection[str], exponent: float) -> str:
    """Return a thing, none of `without`; in lists, where the exponent is their own, now and then another word.

    A word that no answer has becomes like all other such words (one matrix both reads and predicts), and a small model hardly
    learns to tell them apart afterwards: colours and digits stayed at chance.
    """
    if exponent != EXPONENT and rng.random() < OTHERS:
        return rng.choice([word for word in OTHER_WORDS if word not in without])
    return drawn(NAMES, rng, without, exponent)


def _some(there: Collection[str], rng: random.Random, exponent: float) -> str:
    return rng.choice(sorted(there)) if there and rng.random() < 0.5 else _draw(rng, (), exponent)


def _options(first: str, rng: random.Random, exponent: float, without: Collection[str] = ()) -> list[str]:
    """Return four different names, `first` among them, the others none of `without`."""
    options = [first]
    while len(options) < len(LETTERS):
        options.append(_draw(rng, {*without, *options}, exponent))
    return rng.sample(options, len(options))
