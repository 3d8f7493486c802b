"""Parse a raw row as one conversation: its turns, the answers to learn, the image.

A key with a known meaning is used or refused; any other key that is not empty becomes a note.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Any

from switchkd_cli.engine.data.rows import LEFT_OUT, NOT_LEARNT, NOT_READ, Fault, Note, Row, short_repr
from switchkd_cli.package_data import read_yaml

IMAGE = "<image>"  # stands for an image in the text of a row
IMAGE_KEYS = ("image", "path")  # keys of a part of a turn that name an image
SHOWN = 5  # speakers shown of a conversation that is out of order
SYSTEM = ("system", "developer")  # speakers allowed before the first question
MASKED = "masked"  # of the keys that say whether an answer is learnt, the one that means the opposite
KEYS: Mapping[str, Any] = read_yaml(__file__, "row_forms.yaml")
REFUSED_KEYS, REFUSED_OF_TURN = (
    {key: why for why, keys in KEYS[name].items() for key in keys} for name in ("refused", "refused_of_turn")
)
REFUSED_TURN_KEYS = REFUSED_KEYS | REFUSED_OF_TURN


@dataclass(frozen=True)
class Form:
    """A format's keys for the list of turns, a turn's speaker and its text, and its names of the two speakers.

    `rows` describes a file of such rows, for a hint.
    """

    turns: str
    speaker: str
    text: str
    asks: str
    answers: str
    rows: str

    @cached_property
    def _read_keys(self) -> set[str]:
        return {*KEYS["read"], self.turns}

    def row(self, value: object) -> Row:
        """Parse a raw row. An answer before the first question is left out, as in LLaVA. Raises Fault."""
        if not isinstance(value, dict):
            raise Fault(f"not a mapping with a `{self.turns}` list")
        id = "" if absent(value.get("id")) else short_repr(value["id"])
        try:
            return self._row(value, id)
        except Fault as fault:
            raise Fault(str(fault), id) from None

    def _row(self, value: Mapping, id: str) -> Row:
        turns = value.get(self.turns)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise Fault(f"no `{self.turns}` list")
        notes: set[Note] = set()
        if not value.keys() <= self._read_keys:
            notes = {(NOT_READ, short_repr(key)) for key, _ in _other_keys(value, self._read_keys, REFUSED_KEYS)}
        images = _images(value)
        system, turns = self._split_system(value, turns, images, notes)
        texts: list[Any] = [turn.get(self.text) for turn in turns]
        if set(map(type, texts)) != {str}:
            texts = [self._text(text, images, notes) for text in texts]
        if len(images) > 1 and len(images := list(dict.fromkeys(images))) > 1:
            raise Fault(f"at most one image is used, got {len(images)}")
        answers = texts[1::2]
        unlearnt: set[int] = set()
        if max(map(len, turns)) > 2:
            unlearnt = {n // 2 for n, turn in enumerate(turns) if not self._learnt(turn, notes)}
        if not all(answer.strip() for answer in answers):
            notes.add((NOT_LEARNT, "an empty answer"))
            unlearnt |= {n for n, answer in enumerate(answers) if not answer.strip()}
        if len(unlearnt) == len(answers):
            raise Fault(f"no answer to learn: {', '.join(sorted(w for kind, w in notes if kind == NOT_LEARNT))}")
        exchanges = tuple(zip(_without_image(texts, bool(images)), answers, strict=True))
        return Row(id, exchanges, tuple(images), system, frozenset(unlearnt), tuple(sorted(notes)))

    def _split_system(
        self, value: Mapping, turns: Sequence[Mapping], images: list, notes: set[Note]
    ) -> tuple[str | None, Sequence[Mapping]]:
        """Return the system text, from a key or from the first turn, and the turns from the first question on."""
        all_speakers = [turn.get(self.speaker) for turn in turns]
        system, begin = value.get("system"), 0
        if absent(system):
            system = None
        elif not isinstance(system, str):
            raise Fault(f"`system` is not text, got {short_repr(system)}")
        if all_speakers[0] in SYSTEM:
            self._learnt(turns[0], notes)
            first_turn, begin = self._text(turns[0].get(self.text), images, notes), 1
            if system not in (None, first_turn):
                raise Fault("two system texts, a key's and a turn's")
            system = first_turn
        if all_speakers[begin : begin + 1] == [self.answers]:
            begin += 1
            notes.add((LEFT_OUT, "an answer before the first question"))
        speakers = all_speakers[begin:]
        if not speakers or speakers != [self.asks, self.answers] * (len(speakers) // 2):
            shown = ", ".join(map(short_repr, all_speakers[:SHOWN])) + (", ..." if len(all_speakers) > SHOWN else "")
            expected = f"{self.asks}, {self.answers}, {self.asks}, {self.answers}, ..."
            raise Fault(f"turns must go {expected}; a conversation needs an answer, got {shown}")
        return system, turns[begin:]

    def _text(self, content: object, images: list, notes: set[Note]) -> str:
        """Return a turn's text, joined where it is a list of parts; an image part becomes a placeholder and joins `images`."""
        if isinstance(content, str):
            return content
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            parts = [_part(part, images, notes) for part in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str):
            raise Fault(f"a turn's {self.text} is not text")
        return content

    def _learnt(self, turn: Mapping, notes: set[Note]) -> bool:
        """Whether the keys of a turn let its answer be learnt; always true for a question. Raises Fault for a refused key."""
        learnt = True
        for key, value in _other_keys(turn, {self.speaker, self.text}, REFUSED_TURN_KEYS, "a turn"):
            if key not in KEYS["learn"]:
                notes.add((NOT_READ, f"{short_repr(key)} of a turn"))
            elif value not in (0, 1):
                raise Fault(f"`{key}` of a turn is 0 or 1, false or true, got {short_repr(value)}")
            elif turn.get(self.speaker) != self.answers:
                if value != (key == MASKED):
                    notes.add((NOT_READ, f"{key} of a question"))
            elif value == (key == MASKED):
                learnt = False
                notes.add((NOT_LEARNT, f"an answer with {key}: {short_repr(value)}"))
        return learnt


FORMS = {name: Form(**keys) for name, keys in KEYS["forms"].items()}
"""LLaVA-1.5's rows and chat messages."""
llava_row, message_row = (form.row for form in FORMS.values())


def absent(value: object, deep: int = 3) -> bool:
    """Whether a value is empty: null (parquet gives every row every key), NaN (pandas), or an empty text or list."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(absent(item, deep - 1) for item in value) if deep else not value
    return value is None or value == "" or (isinstance(value, float) and isnan(value))


def _other_keys(
    mapping: Mapping, read: Container[str], refused: Mapping[str, str], of: str = "a row"
) -> Iterator[tuple[str, object]]:
    """Yield the keys that are not in `read`, and their values, without empty ones. Raises Fault for a `refused` key."""
    for key, value in mapping.items():
        if key in read or absent(value):
            continue
        if key in refused:
            raise Fault(f"`{key}` of {of}: {refused[key]}")
        yield key, value


def _part(part: Mapping, images: list, notes: set[Note]) -> object:
    """Return the text of a part of a turn: for an image the placeholder, and the image joins `images`."""
    kind = part.get("type") or ("text" if absent(part.get("image")) else "image")
    if kind not in ("text", "image"):
        raise Fault(f"a part of a turn is text or image, got {short_repr(kind)}")
    read, refused = (("type", "text"), REFUSED_TURN_KEYS) if kind == "text" else (("type", *IMAGE_KEYS), REFUSED_KEYS)
    notes |= {(NOT_READ, f"{short_repr(key)} of a part") for key, _ in _other_keys(part, read, refused, "a part")}
    if kind == "text":
        return part.get("text")
    images += _images(part, IMAGE_KEYS)
    return IMAGE


def _images(mapping: Mapping, keys: Sequence[str] = ("image", "images")) -> list[str | bytes]:
    """Return the images under these keys: paths, or (in parquet) `{bytes, path}`, of which the bytes go first."""
    images: list[str | bytes] = []
    for value in map(mapping.get, keys):
        for image in value if isinstance(value, list) else [value]:
            if isinstance(image, dict):
                encoded, path = image.get("bytes"), image.get("path")
                image = encoded if isinstance(encoded, bytes) else path if absent(encoded) and path else image
            if absent(image):
                continue
            if not isinstance(image, str | bytes):
                raise Fault(f"an image is named by one path, got {short_repr(image)}")
            images.append(image)
    return images


def _without_image(texts: Sequence[str], has_image: bool) -> Sequence[str]:
    """Return the questions among alternating texts, without the image placeholder. Raises Fault.

    The image always comes once, before the first question, so the placeholder must be in the first question.
    """
    if not texts[0].count(IMAGE) == "\n".join(texts).count(IMAGE) == int(has_image):
        counts = [text.count(IMAGE) for text in texts]
        expected = "one, in the first question" if has_image else "none, as the row has no image"
        places = ", ".join(f"{n} in turn {i + 1}" for i, n in enumerate(counts) if n) or "none"
        raise Fault(f"{IMAGE} placeholders: {expected}; got {places}")
    first = texts[0].replace(f"{IMAGE}\n", "").replace(f"\n{IMAGE}", "").replace(IMAGE, "")
    return first, *texts[2::2]
