"""Pairs of images with one question, whose right answer is another one on each.

An image and its partner share all but one cause of the answer: also the hands and sizes of the drawings. The partner's
composition belongs to the same split, so that no split shows another's.
"""

import random
from dataclasses import replace
from typing import Any

from switchkd_cli.playground.text.facts import DIGITS
from switchkd_cli.playground.text.prompts import LETTERS, Question
from switchkd_cli.playground.text.words import ASK, fill
from switchkd_cli.playground.world import COLOURS, NAMES, PLACES, Placed, Scene, belongs, drawn, hands

Asked = tuple[Scene, Question]
Change = tuple[Scene, dict[str, str], str, str]
"""Another scene, the slots of the question that tells it from the first, and the right answers on both."""

CAUSES = ("name", "place", "number", "color")
"""What may differ: a thing, its place, the digit, the background; the kinds of the questions (facts.py)."""
TRIES = 20
TRUE = "Which is true?"


def one_cause(scene: Scene, cause: str, rng: random.Random) -> tuple[Asked, ...]:
    """Return the scene and one that differs in `cause`, each with the question; nothing where none was found."""
    for _ in range(TRIES):
        if (change := _change(scene, cause, rng)) and belongs(change[0]):
            other, slots, answer, others = change
            return _asked("mmvp", cause, fill(ASK[cause], slots), (scene, answer), (other, others), rng)
    return ()


def swapped(scene: Scene, rng: random.Random) -> tuple[Asked, ...]:
    """Return the scene and one in which two things have changed places, each with the choice of the true sentence.

    The two sentences have the same words. Returns nothing where none was found.
    """
    relations = scene.relations
    for relation in rng.sample(relations, len(relations)):
        first, second = (thing for thing in scene.unique_things if thing.name in (relation[0], relation[2]))
        other = _with(scene, first, name=second.name, hand=second.hand)
        other = _with(other, second, name=first.name, hand=first.hand)
        if belongs(other):
            true, false = sentences(relation)
            return _asked("swap", relation[1], TRUE, (scene, true), (other, false), rng)
    return ()


def sentences(relation: tuple[str, str, str]) -> tuple[str, str]:
    """Return a relation (see `Scene.relations`) as a sentence, and the sentence with both things exchanged."""
    first, side, second = relation
    phrase = f"to the {side} of" if side in ("left", "right") else side
    return f"the {first} is {phrase} the {second}", f"the {second} is {phrase} the {first}"


def _asked(
    style: str, kind: str, text: str, one: tuple[Scene, str], other: tuple[Scene, str], rng: random.Random
) -> tuple[Asked, ...]:
    options = tuple(rng.sample((one[1], other[1]), 2))
    letters = (LETTERS[options.index(answer)] for _, answer in (one, other))
    questions = (Question(style, kind, text, letter, options) for letter in letters)
    return tuple(zip((one[0], other[0]), questions, strict=True))


def _change(scene: Scene, cause: str, rng: random.Random) -> Change | None:
    """Return a change at random, or nothing where the scene allows none."""
    hard = scene.split == "hard"
    if cause == "name":
        thing, name = rng.choice(scene.things), drawn(NAMES, rng, without=scene.concepts)
        other = _with(scene, thing, name=name, hand=rng.choice(hands(name, hard)))
        return other, {"place": thing.place}, thing.name, name
    if cause == "place":
        taken = {(item.row, item.column) for item in scene.items}
        if not scene.unique_things or len(taken) == len(PLACES):
            return None
        thing = rng.choice(scene.unique_things)
        row, column = rng.choice([cell for cell in PLACES if cell not in taken])
        return _with(scene, thing, row=row, column=column), {"thing": thing.name}, thing.place, PLACES[row, column]
    if cause == "number":
        if (sign := scene.digit) is None:
            return None
        digit = rng.choice([digit for digit in DIGITS if digit != sign.name])
        changed = replace(sign, name=digit, hand=rng.choice(hands(digit, hard)))
        return replace(scene, digit=changed), {}, sign.name, digit
    colour = rng.choice([colour for colour in COLOURS if colour != scene.background])
    return replace(scene, background=colour), {}, scene.background, colour


def _with(scene: Scene, thing: Placed, **changed: Any) -> Scene:
    """Return the scene with one thing changed; its number in the order of drawing stays, and so do all sizes."""
    at = next(at for at, other in enumerate(scene.things) if (other.row, other.column) == (thing.row, thing.column))
    things = (*scene.things[:at], replace(scene.things[at], **changed), *scene.things[at + 1 :])
    return replace(scene, things=things)
