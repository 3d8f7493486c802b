"""Scenes of the playground: one to four things, sometimes a sign with a digit, in a 2x2 layout on a plain background.

Concepts are drawn by Zipf's law: the nth of names.yaml appears with a frequency in proportion to 1/n^1.2. Absent things
and wrong options are drawn by the same law, so that a thing's frequency says nothing about an answer.

Splits: the hash of a scene's composition (background, concepts by place, digit; not the hands) chooses one of ten
buckets, and each split owns some of them, so that two splits never share a composition, whatever their seeds. Two splits
show what training never does: `hard` drawings by a held-out hand (of each concept and digit one, each hand in turn), and
`unseen` pairs of concepts that are in no other split's image together.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from itertools import accumulate, combinations

from PIL import Image, ImageOps

from switchkd_cli.package_data import read_yaml

SIZE = 72
CELL = SIZE // 2
RIM = 8  # of 40 pixels of a keycap
HANDS = ("noto", "noto_v1", "fluent", "twemoji")
SPLITS = {
    "train": range(3, 10),
    "validation": range(1),
    "test": range(1, 2),
    "hard": range(2, 3),
    "unseen": range(1, 2),
}
EXPONENT = 1.2  # of Zipf's law
_BUCKETS = 10
_ASSETS = files("switchkd_cli.playground") / "assets"


@dataclass(frozen=True)
class Placed:
    """A thing, or a sign (a keycap that shows a digit), in a cell of the layout; row 0 is at the top, column 0 at the left."""

    name: str
    """A concept, or a digit from "0" to "9"."""
    hand: str
    row: int
    column: int

    @property
    def place(self) -> str:
        """The name of its cell, such as "top left"."""
        return PLACES[self.row, self.column]

    @property
    def is_sign(self) -> bool:
        return self.name.isdigit()


@dataclass(frozen=True)
class Scene:
    """What an image shows. `things` are in reading order; `digit` is None in scenes without a sign."""

    id: str
    split: str
    background: str
    things: tuple[Placed, ...]
    digit: Placed | None = None

    @property
    def composition(self) -> str:
        """All that the image shows, except by which hand it is drawn: equal compositions look alike."""
        things = ";".join(sorted(f"{t.row}{t.column}{t.name}" for t in self.things))
        sign = f"{self.digit.row}{self.digit.column}{self.digit.name}" if self.digit else ""
        return f"{self.background}|{things}|{sign}"

    @property
    def items(self) -> list[Placed]:
        """The things and, last, the sign."""
        return [*self.things, *([self.digit] if self.digit else [])]

    @cached_property
    def concepts(self) -> Counter[str]:
        """How often each concept is shown."""
        return Counter(thing.name for thing in self.things)

    @cached_property
    def categories(self) -> Counter[str]:
        """How many things of each category are shown."""
        return Counter(CONCEPTS[thing.name] for thing in self.things)

    @property
    def unique_things(self) -> list[Placed]:
        """The things whose concept occurs once, so that "the dog" is clear."""
        return [thing for thing in self.things if self.concepts[thing.name] == 1]

    @property
    def relations(self) -> list[tuple[str, str, str]]:
        """(a, side, b) for all unique things a and b: a is to the left or right of, above or below b."""
        return [
            (a.name, side, b.name)
            for a in self.unique_things
            for b in self.unique_things
            for side, (down, across) in SIDES.items()
            if down * (a.row - b.row) + across * (a.column - b.column) > 0
        ]


SIDES = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""The steps (down, across) from a cell to its neighbours."""

WORDS = read_yaml(__file__, "names.yaml")
CONCEPTS: dict[str, str] = {name: entry["category"] for name, entry in WORDS["concepts"].items()}
"""The category of each concept."""
NAMES = tuple(CONCEPTS)
RANK = {name: rank for rank, name in enumerate(NAMES, 1)}
CATEGORIES = tuple(WORDS["categories"])
COLOURS: dict[str, tuple[int, int, int]] = {name: tuple(entry["rgb"]) for name, entry in WORDS["colours"].items()}
PLACES: dict[tuple[int, int], str] = {tuple(entry["cell"]): name for name, entry in WORDS["places"].items()}
PLACE_NAMES = tuple(PLACES.values())


def drawn(names: tuple[str, ...], rng: random.Random, without: Collection[str] = (), exponent: float = EXPONENT) -> str:
    """Return one of the concepts `names`, none of `without`, by Zipf's law over all concepts; exponent 0: evenly.

    Raises ValueError if none is left.
    """
    if set(names) <= set(without):
        raise ValueError(f"no concept is left of {', '.join(names)}")
    while (name := rng.choices(names, cum_weights=_cumulative(names, exponent))[0]) in without:
        pass
    return name


@cache
def _cumulative(names: tuple[str, ...], exponent: float) -> list[float]:
    return list(accumulate(RANK[name] ** -exponent for name in names))


def held_out_hand(name: str) -> str:
    """Return the hand whose drawing of this concept, or of this digit ("0" to "9"), only split `hard` shows."""
    order = int(name) if name.isdigit() else RANK[name] - 1
    return _drawn_by(name)[order % len(_drawn_by(name))]


@cache
def _drawn_by(name: str) -> tuple[str, ...]:
    """Return the hands that have drawn it: of some things one of the four has no drawing."""
    return tuple(hand for hand in HANDS if f"{name}/{hand}" in _atlas()[1])


@cache
def hands(name: str, hard: bool) -> tuple[str, ...]:
    """Return the hands that draw it in split `hard`, or in the others."""
    held_out = held_out_hand(name)
    return (held_out,) if hard else tuple(hand for hand in _drawn_by(name) if hand != held_out)


@cache
def is_unseen(pair: frozenset[str]) -> bool:
    """Return whether two concepts appear together in split `unseen` alone; this is so for one pair in ten."""
    return hashlib.blake2b("+".join(sorted(pair)).encode(), digest_size=4).digest()[0] % 10 == 0


def scenes(split: str, count: int, seed: int) -> Iterator[Scene]:
    """Yield the first `count` scenes of a split's endless sequence: more scenes begin with the fewer ones."""
    rng = random.Random(f"scenes-{split}-{seed}")
    for index in range(count):
        yield one_scene(split, rng, f"{split}-{seed}-{index}")


def one_scene(split: str, rng: random.Random, scene_id: str = "") -> Scene:
    """Return one scene of a split."""
    while not belongs(scene := _candidate(rng, scene_id, split)):
        pass
    return scene


def belongs(scene: Scene) -> bool:
    """Return whether the scene's composition is one of its split's."""
    bucket = hashlib.blake2b(scene.composition.encode(), digest_size=4).digest()[0] % _BUCKETS
    unseen = any(is_unseen(frozenset(pair)) for pair in combinations(scene.concepts, 2))
    return bucket in SPLITS[scene.split] and unseen == (scene.split == "unseen")


def _candidate(rng: random.Random, scene_id: str, split: str) -> Scene:
    filled = rng.choices((1, 2, 3, 4), weights=(10, 20, 35, 35))[0]
    cells = rng.sample(list(PLACES), filled)
    hard = split == "hard"
    digit = None
    if filled > 1 and rng.random() < 0.45:
        value = str(rng.randrange(10))
        digit = Placed(value, rng.choice(hands(value, hard)), *cells.pop())
    things: list[Placed] = []
    for row, column in sorted(cells):
        repeat = things and rng.random() < 0.3
        concept = rng.choice(things).name if repeat else drawn(NAMES, rng)
        things.append(Placed(concept, rng.choice(hands(concept, hard)), row, column))
    return Scene(scene_id, split, rng.choice(list(COLOURS)), tuple(things), digit)


def draw(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of SIZE x SIZE pixels. Sizes and positions vary a little with the scene's id."""
    jitter = random.Random(scene.id)
    image = Image.new("RGB", (SIZE, SIZE), COLOURS[scene.background])
    for item in scene.items:
        drawing = _drawing(item.name, item.hand, jitter.randint(29, 34))
        slack = CELL - drawing.width
        corner = (item.column * CELL + jitter.randint(0, slack), item.row * CELL + jitter.randint(0, slack))
        image.paste(drawing, corner, drawing)
    return image


@cache
def _atlas() -> tuple[Image.Image, dict[str, tuple[int, int, int, int]]]:
    """Return all drawings as one image, and the box of each, by name and hand ("dog/noto")."""
    index = json.loads((_ASSETS / "atlas.json").read_text(encoding="utf-8"))
    with (_ASSETS / "atlas.webp").open("rb") as file:
        image = Image.open(file).convert("RGBA")
    size, columns = index["cell"], index["columns"]
    corners = ((number % columns * size, number // columns * size) for number in range(len(index["cells"])))
    return image, {cell: (x, y, x + size, y + size) for cell, (x, y) in zip(index["cells"], corners, strict=True)}


@cache
def _drawing(name: str, hand: str, pixels: int) -> Image.Image:
    image, boxes = _atlas()
    drawing = image.crop(boxes[f"{name}/{hand}"])
    if name.isdigit():  # without the keycap's rim: a digit is finer than a thing
        drawing = ImageOps.crop(drawing, RIM)
    return drawing.resize((pixels, pixels), Image.Resampling.LANCZOS)
