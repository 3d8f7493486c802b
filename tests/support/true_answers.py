"""The right answer to a question about a scene, found again in its text by rules of the tests' own."""

import re

from switchkd_cli.playground.text.words import plural, say, with_article
from switchkd_cli.playground.world import CATEGORIES, CONCEPTS, PLACES, Placed, Scene


def at(scene: Scene, place: str) -> Placed | None:
    cell = next(cell for cell, name in PLACES.items() if place in (name, say(name, "zh")))
    items = (*scene.things, *([scene.digit] if scene.digit else []))
    return next((item for item in items if (item.row, item.column) == cell), None)


def place_in(text: str) -> str:
    return next(word for name in PLACES.values() for word in (name, say(name, "zh")) if word in text)


def named_in(text: str) -> list[str]:
    """The concepts a text names, in its order; longer Chinese names first, lest one be found in another."""
    found = []
    for name in sorted((*CONCEPTS, *CATEGORIES), key=lambda name: -len(say(name, "zh"))):
        forms = {plural(name): rf"\b{plural(name)}\b", name: rf"\b{name}\b", (zh := say(name, "zh")): zh}
        for said, form in forms.items():
            if said in text and (match := re.search(form, text)):
                found.append((match.start(), name))
                text = re.sub(form, lambda hit: "#" * len(hit[0]), text)
    return [name for _, name in sorted(found) if name in CONCEPTS]


def many(scene: Scene, symbol: str) -> int:
    return sum(symbol in ("thing", t.name, CONCEPTS[t.name]) for t in scene.things)


def next_to(scene: Scene, name: str, down: int, across: int) -> str | None:
    (thing,) = (t for t in scene.things if t.name == name)
    other = next((t for t in scene.things if (t.row, t.column) == (thing.row + down, thing.column + across)), None)
    return other.name if other else None


STEPS = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}


def true_answer(scene: Scene, question) -> str:
    """The answer to an open question or to a choice, as a symbol."""
    text = f"{question.hint} {question.text}"
    if question.kind == "name":
        return at(scene, place_in(text)).name
    if question.kind == "category":
        return CONCEPTS[at(scene, place_in(text)).name]
    if question.kind == "color":
        return scene.background
    if question.kind == "number":
        return scene.digit.name
    if question.kind == "place":
        (thing,) = (t for t in scene.things if t.name == named_in(text)[0])
        return PLACES[thing.row, thing.column]
    if question.kind == "count":
        symbols = [s for s in ("thing", *CATEGORIES) if f" {plural(s)} " in text or f"个{say(s, 'zh')}？" in text]
        return str(many(scene, (named_in(text) or symbols)[0]))
    if question.kind in STEPS:
        return next_to(scene, named_in(text)[0], *STEPS[question.kind])
    raise AssertionError(f"the test knows no kind {question.kind}")


def holds(scene: Scene, text: str) -> bool:
    """Whether a yes/no question is to be answered yes."""
    if "background" in text:
        return f" {scene.background}?" in text
    if "number" in text:
        return text.split("?")[0].endswith(f" {scene.digit.name}")
    if "total of" in text:
        number, name = text.split("total of ")[1].split(" in the")[0].split(" ")
        symbol = next(s for s in ("thing", *CATEGORIES, *CONCEPTS) if name in (s, plural(s)))
        return many(scene, symbol) == int(number)
    if "Is there" in text and " at the " in text:
        item = at(scene, place_in(text))
        return item is not None and not item.is_sign and named_in(text) == [item.name]
    if "Is there" in text:
        return any(f"{with_article(s)} " in text for t in scene.things for s in (t.name, CONCEPTS[t.name]))
    first, second = (next(t for t in scene.things if t.name == name) for name in named_in(text))
    return {
        "left": first.column < second.column,
        "right": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[next(word for word in STEPS if f" {word} " in text)]
