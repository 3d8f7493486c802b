"""Scenes of the playground: one to four things, sometimes a sign with a digit, in a 2x2 layout on a plain background.

Splits: the hash of a scene's composition (background, concepts by place, digit; not the hands) chooses one of ten
buckets, and each split owns some of them, so that two splits never share a composition, whatever their seeds. Split `hard`
also uses drawings that no other split shows: of each concept and digit, one hand is held out, each hand in turn.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import yaml
from PIL import Image

SIZE = 72
CELL = SIZE // 2
HANDS = ("noto", "noto_v1", "fluent", "twemoji")
SPLITS = {"train": range(3, 10), "validation": range(1), "test": range(1, 2), "hard": range(2, 3)}
_BUCKETS = 10
_ASSETS = files("switchkd_cli.playground") / "assets"


@dataclass(frozen=True)
class Concept:
    """A thing's names: English singular and plural, Chinese; and its category's English name."""

    name: str
    plural: str
    zh: str
    category: str


@dataclass(frozen=True)
class Colour:
    name: str
    zh: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """One cell of the layout; row 0 is at the top, column 0 at the left."""

    name: str
    zh: str
    row: int
    column: int


class Placed:
    """Something in a cell of the layout."""

    row: int
    column: int

    @property
    def place(self) -> str:
        """The name of its cell, such as "top left"."""
        return PLACES[self.row, self.column].name


@dataclass(frozen=True)
class Thing(Placed):
    concept: str
    hand: str
    row: int
    column: int

    @property
    def category(self) -> str:
        return CONCEPTS[self.concept].category


@dataclass(frozen=True)
class Sign(Placed):
    """A keycap that shows one digit, 0 to 9."""

    value: int
    hand: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """What an image shows. `things` are in reading order; `digit` is None in scenes without a sign."""

    id: str
    split: str
    background: str
    things: tuple[Thing, ...]
    digit: Sign | None = None

    @property
    def composition(self) -> str:
        """All that the image shows, except by which hand it is drawn: equal compositions look alike."""
        things = ";".join(f"{t.row}{t.column}{t.concept}" for t in self.things)
        sign = f"{self.digit.row}{self.digit.column}{self.digit.value}" if self.digit else ""
        return f"{self.background}|{things}|{sign}"

    @property
    def items(self) -> list[Thing | Sign]:
        """The things and, last, the sign."""
        return [*self.things, *([self.digit] if self.digit else [])]

    @cached_property
    def concepts(self) -> Counter[str]:
        """How often each concept is shown."""
        return Counter(thing.concept for thing in self.things)

    @cached_property
    def categories(self) -> Counter[str]:
        """How many things of each category are shown."""
        return Counter(thing.category for thing in self.things)

    @property
    def unique_things(self) -> list[Thing]:
        """The things whose concept occurs once, so that "the dog" is clear."""
        return [thing for thing in self.things if self.concepts[thing.concept] == 1]

    @property
    def relations(self) -> list[tuple[str, str, str]]:
        """(a, side, b) for all unique things a and b: a is to the left or right of, above or below b."""
        return [
            (a.concept, side, b.concept)
            for a in self.unique_things
            for b in self.unique_things
            for side, holds in (
                ("left", a.column < b.column),
                ("right", a.column > b.column),
                ("above", a.row < b.row),
                ("below", a.row > b.row),
            )
            if holds
        ]


_WORDS = yaml.safe_load((files("switchkd_cli.playground") / "names.yaml").read_text(encoding="utf-8"))
CATEGORIES: dict[str, str] = {name: entry["zh"] for name, entry in _WORDS["categories"].items()}
CONCEPTS: dict[str, Concept] = {
    name: Concept(name, entry.get("plural", name + "s"), entry["zh"], entry["category"])
    for name, entry in _WORDS["concepts"].items()
}
COLOURS: dict[str, Colour] = {
    name: Colour(name, entry["zh"], tuple(entry["rgb"])) for name, entry in _WORDS["colours"].items()
}
PLACES: dict[tuple[int, int], Place] = {
    tuple(entry["cell"]): Place(name, entry["zh"], *entry["cell"]) for name, entry in _WORDS["places"].items()
}
PLACE_NAMES = tuple(place.name for place in PLACES.values())
_CONCEPT_NAMES = tuple(CONCEPTS)
_COLOUR_NAMES = tuple(COLOURS)
_CELLS = tuple(PLACES)


def held_out_hand(name: str) -> str:
    """Return the hand whose drawing of this concept, or of this digit ("0" to "9"), only split `hard` shows."""
    order = int(name) if name.isdigit() else _CONCEPT_NAMES.index(name)
    return HANDS[order % len(HANDS)]


@cache
def _hands(name: str, hard: bool) -> tuple[str, ...]:
    held_out = held_out_hand(name)
    return (held_out,) if hard else tuple(hand for hand in HANDS if hand != held_out)


def scenes(split: str, count: int, seed: int) -> Iterator[Scene]:
    """Yield the first `count` scenes of a split's endless sequence: more scenes begin with the fewer ones.

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    rng = random.Random(f"scenes-{split}-{seed}")
    for index in range(count):
        scene = _candidate(rng, f"{split}-{seed}-{index}", split)
        while _bucket(scene) not in SPLITS[split]:
            scene = _candidate(rng, scene.id, split)
        yield scene


def _bucket(scene: Scene) -> int:
    return hashlib.blake2b(scene.composition.encode(), digest_size=4).digest()[0] % _BUCKETS


def _candidate(rng: random.Random, scene_id: str, split: str) -> Scene:
    filled = rng.choices((1, 2, 3, 4), weights=(10, 20, 35, 35))[0]
    cells = rng.sample(_CELLS, filled)
    hard = split == "hard"
    digit = None
    if filled > 1 and rng.random() < 0.45:
        value = rng.randrange(10)
        digit = Sign(value, rng.choice(_hands(str(value), hard)), *cells.pop())
    things: list[Thing] = []
    for row, column in sorted(cells):
        repeat = things and rng.random() < 0.3
        concept = rng.choice(things).concept if repeat else rng.choice(_CONCEPT_NAMES)
        things.append(Thing(concept, rng.choice(_hands(concept, hard)), row, column))
    return Scene(scene_id, split, rng.choice(_COLOUR_NAMES), tuple(things), digit)


def draw(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of SIZE x SIZE pixels. Sizes and positions vary a little with the scene's id."""
    jitter = random.Random(scene.id)
    image = Image.new("RGB", (SIZE, SIZE), COLOURS[scene.background].rgb)
    for item in scene.items:
        if isinstance(item, Thing):
            drawing = _drawing(item.concept, item.hand, jitter.randint(29, 34))
        else:
            drawing = _drawing(str(item.value), item.hand, jitter.randint(27, 32))
        slack = CELL - drawing.width
        corner = (item.column * CELL + jitter.randint(0, slack), item.row * CELL + jitter.randint(0, slack))
        image.paste(drawing, corner, drawing)
    return image


@cache
def _atlas() -> tuple[Image.Image, dict]:
    index = json.loads((_ASSETS / "atlas.json").read_text(encoding="utf-8"))
    with (_ASSETS / "atlas.png").open("rb") as file:
        image = Image.open(file).convert("RGBA")
    return image, index


@cache
def _drawing(name: str, hand: str, pixels: int) -> Image.Image:
    image, index = _atlas()
    x, y = index["cells"][f"{name}/{hand}"]
    cell = index["cell"]
    return image.crop((x, y, x + cell, y + cell)).resize((pixels, pixels), Image.Resampling.LANCZOS)
