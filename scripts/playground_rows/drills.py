"""Short turns about a scene, many to an image: they teach a model to look things up in what it sees.

The drills' skills are those that benchmark questions need: whether a thing is there, where, which option, what letter.
"""

import random
from collections.abc import Callable

from scripts.playground_rows import lists
from scripts.playground_rows.phrases import phrase
from switchkd_cli.playground.benchmark_sets import TRUE, sentences
from switchkd_cli.playground.text.facts import FACTS, STATEMENTS, shown
from switchkd_cli.playground.text.questions import LETTER, LETTERS, Turn, ask, prompt, question_turn
from switchkd_cli.playground.text.words import ASK, STYLES, fill, say
from switchkd_cli.playground.world import PLACE_NAMES, Scene


def drill(scene: Scene, rng: random.Random, language: str | None = None) -> Turn:
    """Return one drill in a language, or in any: a short question about the scene, or a benchmark's, and its answer."""
    language = language or lists.language_of(rng)
    if language == "zh" and rng.random() < 0.25:
        return question_turn(scene, rng, language)
    makes = BILINGUAL if language == "zh" else DRILLS
    return rng.choices(list(makes), weights=list(makes.values()))[0](scene, rng, language)


def choose(scene: Scene, rng: random.Random) -> Turn:
    """Return a multiple choice: half of the time as its benchmark asks for it, else answered as `lists.chosen` is."""
    language = lists.language_of(rng)
    choices = [
        style for style, manner in STYLES.items() if "choice" in manner and manner.get("language", "en") == language
    ]
    question = ask(scene, rng.choice(choices), rng)
    if rng.random() < 0.5:
        return prompt(question), question.answer
    answer = question.options[LETTERS.index(question.answer)]
    return lists.chosen(f"{question.hint} {question.text}".strip(), question.options, answer, rng, language)


def _map(scene: Scene, rng: random.Random, language: str) -> Turn:
    """Ask for all things, without or with their places."""
    things = [(say(item.place, language), say(item.name, language)) for item in scene.items]
    if rng.random() < 0.3:
        return phrase("say", language), phrase("comma", language).join(name for _, name in things)
    places = (phrase("place of thing", language, *thing) for thing in things)
    return phrase("where", language), phrase("comma", language).join(places)


def _true(scene: Scene, rng: random.Random, language: str) -> Turn:
    """Ask which of two sentences is true; they have the same words, in another order."""
    if not (relations := scene.relations):
        return _map(scene, rng, language)
    true, swapped = sentences(rng.choice(relations))
    options = rng.sample([true, swapped], 2)
    return lists.choice(TRUE, options, "en") + LETTER, LETTERS[options.index(true)]


def _is_there(scene: Scene, rng: random.Random, language: str) -> Turn:
    """Ask "dog?", of a thing that is or isn't there."""
    truth = rng.random() < 0.5
    asked = say(shown(scene, rng, truth), language)
    return phrase("question", language, asked), phrase("yes" if truth else "no", language).strip()


def _statement(scene: Scene, rng: random.Random, language: str) -> Turn:
    truth = rng.random() < 0.5
    kind = rng.choice([kind for kind in STATEMENTS if scene.digit or kind != "OCR"])
    text = STATEMENTS[kind](scene, rng, truth) or STATEMENTS["position"](scene, rng, truth)
    return str(text), "yes" if truth else "no"


def _at(scene: Scene, rng: random.Random, language: str) -> Turn:
    """Ask "top left?" for what is there."""
    place = rng.choice(PLACE_NAMES)
    name = next((item.name for item in scene.items if item.place == place), None)
    answer = say(name, language) if name else phrase("nothing", language)
    return phrase("question", language, say(place, language)), answer


def _open(scene: Scene, rng: random.Random, language: str) -> Turn:
    """Ask for a fact openly."""
    kinds = [kind for kind in FACTS if kind != "compare"]
    fact = FACTS[rng.choice(kinds)](scene, rng) or FACTS["category"](scene, rng)
    assert fact is not None  # every scene has a thing, and so a category
    return fill(ASK[fact.kind], fact.slots, language), say(fact.answer, language)


BILINGUAL: dict[Callable[[Scene, random.Random, str], Turn], int] = {
    lambda scene, rng, language: lists.roll(scene.concepts, rng, language): 1,
    _map: 2,
    lambda scene, rng, language: lists.checked(scene.concepts, rng, language): 1,
    lambda scene, rng, language: lists.shown(scene.concepts, rng, language): 6,
    lambda scene, rng, language: (lists.letters if rng.random() < 0.7 else lists.again)(
        rng, language, scene.concepts
    ): 1,
    _is_there: 5,
    _at: 2,
    _open: 3,
}
"""The drills that are asked in either language, and how often."""
DRILLS = {**BILINGUAL, _statement: 16, _true: 2, question_turn: 20}
"""Those in English."""
