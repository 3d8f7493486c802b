"""A raw row as one conversation: who says what, which answers are learnt, the image.

A key with a known meaning is honoured or refused; of any other one that holds something a note is made.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Any

from switchkd_cli.engine.data.rows import LEFT_OUT, NOT_LEARNT, NOT_READ, Fault, Note, Row, told

IMAGE = "<image>"  # stands for an image in the text of a row
SHOWN = 5  # speakers shown of a conversation that is out of order
SYSTEM = ("system", "developer")  # who may speak before the first question
READ = {"id", "image", "images", "system"}  # of a row, besides its turns

MASKED = "masked"  # says the opposite of the others
SHARES = {"weight", "loss_weight", "loss_scale", "loss_mask"}  # of the loss, 0 or 1
LEARNT = SHARES | {"loss", "train", "training", "trainable", MASKED}

REFUSED = {
    **dict.fromkeys(("video", "videos", "audio", "audios"), "only images can be used"),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "function calls can't be written"),
}
REFUSED_OF_A_TURN = REFUSED | {
    **dict.fromkeys(("train_detail", "training_detail"), "an answer is learnt whole or not at all"),
    **dict.fromkeys(("image", "images"), "name it in the row, and put <image> into the first question"),
}


@dataclass(frozen=True)
class Form:
    """What a format calls the list of turns, a turn's speaker and its text, and the two speakers."""

    turns: str
    speaker: str
    text: str
    asks: str
    answers: str

    @cached_property
    def _read(self) -> set[str]:
        return READ | {self.turns}

    def row(self, value: object) -> Row:
        """The raw row as a Row. An answer before the first question is left out, as LLaVA does. Raises Fault."""
        if not isinstance(value, dict):
            raise Fault(f"not a mapping with a `{self.turns}` list")
        id = "" if absent(value.get("id")) else told(value["id"])
        try:
            return self._row(value, id)
        except Fault as fault:
            raise Fault(str(fault), id) from None

    def _row(self, value: Mapping, id: str) -> Row:
        turns = value.get(self.turns)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise Fault(f"no `{self.turns}` list")
        notes: set[Note] = set()
        if not value.keys() <= self._read:
            notes = {(NOT_READ, told(key)) for key, _ in _more(value, self._read, REFUSED)}
        images = _images(value)
        system, turns = self._opened(value, turns, images, notes)
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
            raise Fault(
                f"no answer to learn: {', '.join(sorted(w for kind, w in notes if kind == NOT_LEARNT))}"
            )
        exchanges = tuple(zip(_without_image(texts, bool(images)), answers, strict=True))
        return Row(id, exchanges, tuple(images), system, frozenset(unlearnt), tuple(sorted(notes)))

    def _opened(
        self, value: Mapping, turns: Sequence[Mapping], images: list, notes: set[Note]
    ) -> tuple[str | None, Sequence[Mapping]]:
        """The system's text, by a key or by the first turn, and the turns from the first question on."""
        heard = [turn.get(self.speaker) for turn in turns]
        system, begin = value.get("system"), 0
        if absent(system):
            system = None
        elif not isinstance(system, str):
            raise Fault(f"`system` is not text, got {told(system)}")
        if heard[0] in SYSTEM:
            self._learnt(turns[0], notes)
            said, begin = self._text(turns[0].get(self.text), images, notes), 1
            if system not in (None, said):
                raise Fault("two system texts, a key's and a turn's")
            system = said
        if heard[begin : begin + 1] == [self.answers]:
            begin += 1
            notes.add((LEFT_OUT, "an answer before the first question"))
        speakers = heard[begin:]
        if not speakers or speakers != [self.asks, self.answers] * (len(speakers) // 2):
            shown = ", ".join(map(told, heard[:SHOWN])) + (", ..." if len(heard) > SHOWN else "")
            wanted = f"{self.asks}, {self.answers}, {self.asks}, {self.answers}, ..."
            raise Fault(f"turns must go {wanted}; a conversation needs an answer, got {shown}")
        return system, turns[begin:]

    def _text(self, said: object, images: list, notes: set[Note]) -> str:
        """Text, or parts of which an image is as good as its placeholder; what these name goes to `images`."""
        if isinstance(said, str):
            return said
        if isinstance(said, list) and all(isinstance(part, dict) for part in said):
            parts = [_part(part, images, notes) for part in said]
            texts = [part for part in parts if isinstance(part, str)]
            said = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(said, str):
            raise Fault(f"a turn's {self.text} is not text")
        return said

    def _learnt(self, turn: Mapping, notes: set[Note]) -> bool:
        """Whether the turn's keys let it be learnt; a question never is."""
        learnt = True
        for key, held in _more(turn, {self.speaker, self.text}, REFUSED_OF_A_TURN, "a turn"):
            if key not in LEARNT:
                notes.add((NOT_READ, f"{told(key)} of a turn"))
            elif held not in (0, 1):
                raise Fault(f"`{key}` of a turn is 0 or 1, false or true, got {told(held)}")
            elif turn.get(self.speaker) != self.answers:
                if held != (key == MASKED):
                    notes.add((NOT_READ, f"{key} of a question"))
            elif held == (key == MASKED):
                learnt = False
                notes.add((NOT_LEARNT, f"an answer with {key}: {told(held)}"))
        return learnt


def absent(value: object, deep: int = 3) -> bool:
    """Whether a key says nothing: null (parquet gives every row every key), NaN (pandas), or empty."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(absent(one, deep - 1) for one in value) if deep else not value
    return value is None or value == "" or (isinstance(value, float) and isnan(value))


def _more(
    held: Mapping, read: Container[str], refused: Mapping[str, str], of: str = "a row"
) -> Iterator[tuple[str, object]]:
    """The keys besides `read` that hold something. Raises Fault for one of `refused`."""
    for key, value in held.items():
        if key in read or absent(value):
            continue
        if key in refused:
            raise Fault(f"`{key}` of {of}: {refused[key]}")
        yield key, value


def _part(part: Mapping, images: list, notes: set[Note]) -> object:
    """What a part of a turn says: an image its placeholder."""
    kind = part.get("type") or ("text" if absent(part.get("image")) else "image")
    if kind not in ("text", "image"):
        raise Fault(f"a part of a turn is text or image, got {told(kind)}")
    read, refused = (
        (("type", "image", "path"), REFUSED) if kind == "image" else (("type", "text"), REFUSED_OF_A_TURN)
    )
    notes |= {(NOT_READ, f"{told(key)} of a part") for key, _ in _more(part, read, refused, "a part")}
    if kind == "text":
        return part.get("text")
    images += _images(part, ("image", "path"))
    return IMAGE


def _images(held: Mapping, keys: Sequence[str] = ("image", "images")) -> list[str | bytes]:
    """Every image that is named: a path, or (in parquet) `{bytes, path}`, where the bytes count if there are any."""
    found = []
    for named in map(held.get, keys):
        for image in named if isinstance(named, list) else [named]:
            if isinstance(image, dict):
                encoded, path = image.get("bytes"), image.get("path")
                image = encoded if isinstance(encoded, bytes) else path if absent(encoded) and path else image
            if absent(image):
                continue
            if not isinstance(image, str | bytes):
                raise Fault(f"an image is named by one path, got {told(image)}")
            found.append(image)
    return found


def _without_image(texts: Sequence[str], pictured: bool) -> Sequence[str]:
    """The questions of alternating texts without the placeholder. Raises Fault.

    An image is seen once, before the first question: the only place that its placeholder may say.
    """
    if not texts[0].count(IMAGE) == "\n".join(texts).count(IMAGE) == int(pictured):
        counts = [text.count(IMAGE) for text in texts]
        expected = "one, in the first question" if pictured else "none, as the row has no image"
        places = ", ".join(f"{n} in turn {i + 1}" for i, n in enumerate(counts) if n) or "none"
        raise Fault(f"{IMAGE} placeholders: {expected}; got {places}")
    first = texts[0].replace(f"{IMAGE}\n", "").replace(f"\n{IMAGE}", "").replace(IMAGE, "")
    return first, *texts[2::2]
