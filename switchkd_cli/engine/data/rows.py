"""Rows of data, whatever file they come from: conversations that may have one picture, their texts checked."""

from __future__ import annotations

import json
import reprlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.errors import UserError, did_you_mean, printable

TURNS = ("chained", "independent")
LONGEST = (
    1 << 20
)  # characters of a row; a longer one is no conversation, and its tokens would fill the memory
NAMED = 100  # characters of a row's id and of what it holds that are told
NOTED = 1000  # different notes that are counted; every row could hold a key of its own
SHOWN = 12  # notes of a kind that are shown

LEFT_OUT, NOT_LEARNT, NOT_READ = "left out", "seen, but not learnt", "keys that are not read"
Note = tuple[str, str]
"""One of these kinds, and what it is of."""


@dataclass(frozen=True)
class Row:
    """One conversation: questions and answers without placeholders; its images come before the first question.

    `images` are paths inside the data set's image folder, or encoded images. `unlearnt` are the exchanges
    whose answers are read but not supervised. `notes` say what of the raw row is not used as the rest is.
    """

    id: str
    exchanges: tuple[tuple[str, str], ...]
    images: tuple[str | bytes, ...] = ()
    system: str | None = None
    unlearnt: frozenset[int] = frozenset()
    notes: tuple[Note, ...] = ()

    @property
    def size(self) -> int:
        """Characters of its text: what rows of like length are found by."""
        return sum(len(question) + len(answer) for question, answer in self.exchanges)


class Fault(Exception):
    """Why a row can't be used. `refused`: not even one such row is let through.

    What is quoted of the row is made `printable`: a row may hold anything.
    """

    def __init__(self, text: str, id: str = "", *, refused: bool = False) -> None:
        self.id = id
        self.refused = refused
        super().__init__(printable(text, 5 * NAMED))

    def at(self, row: int) -> Unusable:
        return Unusable(row, self.id, str(self), self.refused)


Parse = Callable[[object], Row]
"""A raw row (what JSON or parquet holds) -> Row. Raises Fault."""


@dataclass(frozen=True)
class Survey:
    """What one pass over the texts of all N rows finds, small enough to stay in memory."""

    sizes: np.ndarray  # [N] int32, characters
    pictured: np.ndarray  # [N] bool
    faults: tuple[Unusable, ...]
    images: bytes  # the image paths of rows that can be used, as JSON: names of a million files take little memory
    notes: Mapping[Note, int]  # in how many rows each was made

    @property
    def image_names(self) -> list[str]:
        """The image paths, as the rows have them."""
        return json.loads(self.images)

    def told(self) -> Iterator[str]:
        """The notes, a line for each kind, the most frequent first."""
        for kind in (LEFT_OUT, NOT_LEARNT, NOT_READ):
            found = [(count, what) for (of, what), count in self.notes.items() if of == kind]
            found.sort(key=lambda each: (-each[0], each[1]))
            shown = [f"{what} ({count:,} row{'s' * (count > 1)})" for count, what in found[:SHOWN]]
            if len(found) > SHOWN:
                shown.append(f"{len(found) - SHOWN:,} others")
            if shown:
                yield f"{kind}: {', '.join(shown)}"


class Rows:
    """The rows of one data set, read one at a time.

    `images` is the folder that image paths are relative to; `follow_links` lets symbolic links lead out of it. With `turns="chained"` a row is one conversation, with
    `"independent"` its turns share the picture and nothing else. Raises UserError for another `turns`, and Fault
    when a faulty row is asked for.
    """

    def __init__(
        self,
        raw: Sequence[object],
        parse: Parse,
        *,
        images: Path | None = None,
        follow_links: bool = False,
        turns: str = "chained",
        name: str = "rows",
        survey: Survey | None = None,
    ) -> None:
        if turns not in TURNS:
            raise UserError(f"turns: unknown value, got {turns!r}{did_you_mean(turns, TURNS)}")
        self.raw = raw
        self.parse = parse
        self.images = images
        self.follow_links = follow_links
        self.turns = turns
        self.name = name
        self.survey = survey or surveyed(raw, parse, images)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Row:
        try:
            value = self.raw[index]
        except (OSError, ValueError, RecursionError) as error:  # it could be read when the survey was made
            raise Fault(f"not readable any more: {error}") from error
        row = checked(value, self.parse, self.images)
        return row if row.id else replace(row, id=str(index))


def surveyed(raw: Iterable[object], parse: Parse, images: Path | None) -> Survey:
    """Looks at every row's text once; pictures are not opened."""
    sizes, pictured = array("i"), array("b")
    faults: list[Unusable] = []
    names: dict[str, None] = {}
    notes: Counter[Note] = Counter()
    for number, value in enumerate(raw):
        try:
            row = checked(value, parse, images)
            sizes.append(row.size)
            pictured.append(bool(row.images))
            names |= {image: None for image in row.images if isinstance(image, str)}
            for kind, what in row.notes:
                known = len(notes) < NOTED or (kind, what) in notes
                notes[kind, what if known else "others, counted together"] += 1
        except Fault as fault:
            faults.append(fault.at(number))
            sizes.append(0)
            pictured.append(False)
    told = json.dumps(list(names)).encode()
    return Survey(np.array(sizes, np.int32), np.array(pictured, bool), tuple(faults), told, notes)


def checked(value: object, parse: Parse, images: Path | None) -> Row:
    """The row, its texts known to be text and its image path to stay inside the image folder. Raises Fault.

    Where symbolic links lead is seen when the picture is opened.
    """
    row = parse(value)
    if (size := row.size + len(row.system or "")) > LONGEST:
        raise Fault(f"{size:,} characters of text, {LONGEST:,} are the most", row.id)
    if not all(map(_is_text, (*(text for pair in row.exchanges for text in pair), row.system or ""))):
        raise Fault("its text holds half a character (a lone surrogate)", row.id)
    for image in row.images:
        if isinstance(image, bytes):
            continue
        if images is None:
            raise Fault("has an image, but the data names no `images` folder", row.id)
        if image.startswith("/") or ".." in image or "\\" in image:  # nearly never: look closer
            path = Path(image.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise Fault(f"image path leaves its folder: {image}", row.id, refused=True)
    return row


def told(value: object) -> str:
    """A value of a row on a line of a message, cut where it is long or deep."""
    return printable(value if isinstance(value, str) else reprlib.repr(value), NAMED)


def _is_text(text: str) -> bool:
    """Whether it can be written down: JSON may hold halves of characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
