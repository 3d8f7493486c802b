"""Parse a raw row as one conversation: its turns, the answers to learn, the images.

A key with a known meaning is used or refused; any other key that is not empty becomes a note.
"""

import re
from base64 import b64decode
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from math import isnan
from typing import Any

from switchkd_cli import registry
from switchkd_cli.engine.data.rows import LEFT_OUT, NOT_LEARNT, NOT_READ, Fault, Note, Row, short_repr
from switchkd_cli.package_data import read_yaml
from switchkd_cli.recipe.schema import RowFormat

IMAGE = "<image>"  # stands for an image in the text of a row
AT_THE_ENDS = re.compile(rf"^({IMAGE}\n?)+|(\n{IMAGE})+$")
SHOWN = 5  # speakers shown of a conversation that is out of order
SYSTEM = ("system", "developer")  # speakers allowed before the first question
MASKED = "masked"  # of the keys that say whether an answer is learnt, the one that means the opposite
ASKS, ANSWERS = "human", "gpt"  # what speakers are called here, and unless a format says otherwise
DATA_URI = re.compile("data:[^,]*;base64,(.*)", re.DOTALL | re.IGNORECASE)
IMAGE_FIELDS = ("bytes", "path", "url")  # of an image that is a mapping
KEYS: Mapping[str, Any] = read_yaml(__file__, "row_forms.yaml")
IMAGE_KEYS: Sequence[str] = KEYS["image_keys"]
TYPES: Mapping[str, str] = {name: kind for kind, names in KEYS["parts"].items() for name in names}
REFUSED_KEYS = {key: why for why, keys in KEYS["refused"].items() for key in keys}
REFUSED_TURN_KEYS = REFUSED_KEYS | {key: why for why, keys in KEYS["refused_of_turn"].items() for key in keys}


class Form:
    """Reads rows whose keys are those of a format: its own names of a list of turns, or of questions and answers."""

    def __init__(self, keys: RowFormat) -> None:
        self.keys = keys
        # turns that are made of questions and answers have a speaker's key of their own
        self.speaker = keys.speaker or "(speaker)"
        self.text = keys.text or keys.answer or ""
        self.roles: Mapping[Any, str] = {**dict.fromkeys(keys.asks, ASKS), **dict.fromkeys(keys.answers, ANSWERS)}
        of_row = [keys.turns] if keys.turns else [*keys.question, keys.answer]
        history = [keys.history] if keys.answer else []
        self.read = {keys.id, keys.system, *keys.images, *history, *of_row, keys.chosen, keys.rejected}
        self.refused = REFUSED_KEYS | keys.refused

    def row(self, value: object) -> Row:
        """Parse a raw row. An answer before the first question is left out, as in LLaVA. Raises Fault."""
        if not isinstance(value, dict):
            what = f"a `{self.keys.turns}` list" if self.keys.turns else f"`{self.keys.answer}`"
            raise Fault(f"not a mapping with {what}")
        id = "" if absent(value.get(self.keys.id)) else short_repr(value[self.keys.id])
        try:
            return self._row(value, id)
        except Fault as fault:
            raise Fault(str(fault), id) from None

    def _row(self, value: Mapping, id: str) -> Row:
        turns = self._turns(value)
        notes = {(NOT_READ, short_repr(key)) for key, _ in _other_keys(value, self.read, self.refused)}
        images = _images(value, self.keys.images)
        shown: list[str | bytes | None] = []
        system, turns = self._split_system(value, turns, shown, notes)
        texts: list[Any] = [turn.get(self.text) for turn in turns]
        if set(map(type, texts)) != {str}:
            texts = [self._text(text, shown, notes) for text in texts]
        if any(one is not None for one in shown):
            # parts say which image stands where; those without a name take the row's others
            others = iter([image for image in images if image not in shown])
            filled = [next(others, None) if one is None else one for one in shown]
            images = [image for image in filled if image is not None] + list(others)
        if len(images) > "".join(texts).count(IMAGE):
            images = list(dict.fromkeys(images))  # named by two keys
        answers = texts[1::2]
        unlearnt: set[int] = set()
        if max(map(len, turns)) > 2:
            unlearnt = {n // 2 for n, turn in enumerate(turns) if not self._learnt(turn, notes)}
        if not all(answer.strip() for answer in answers):
            notes.add((NOT_LEARNT, "an empty answer"))
            unlearnt |= {n for n, answer in enumerate(answers) if not answer.strip()}
        if len(unlearnt) == len(answers):
            raise Fault(f"no answer to learn: {', '.join(sorted(w for kind, w in notes if kind == NOT_LEARNT))}")
        questions, places = _without_images(texts, len(images), self.keys.placeholder)
        exchanges = tuple(zip(questions, answers, strict=True))
        if rejected := self._rejected(value, notes):
            if len(answers) - 1 in unlearnt:
                raise Fault("the answer that is preferred is empty or not learnt")
            unlearnt = set(range(len(answers) - 1))
            notes |= {(NOT_LEARNT, "answers before a preference")} if unlearnt else set()
            exchanges += ((questions[-1], rejected),)
        fields = tuple(images), system, frozenset(unlearnt), tuple(sorted(notes)), places
        return Row(id, exchanges, *fields, paired=bool(rejected))

    def _rejected(self, value: Mapping, notes: set[Note]) -> str | None:
        """Return the text of the row's rejected answer, if it has one: of a text, a turn, or a list of one turn."""
        turn = value.get(self.keys.rejected or "")
        if absent(turn):
            return None
        turn = turn[0] if isinstance(turn, list) and len(turn) == 1 else turn
        text = self._text(turn.get(self.text) if isinstance(turn, dict) else turn, [], notes)
        if not text.strip() or IMAGE in text:
            raise Fault(f"`{self.keys.rejected}` is one answer of text, got {short_repr(text)}")
        return text

    def _turns(self, value: Mapping) -> Sequence[Mapping]:
        """Return the row's turns, made of its questions and answers where the format names these. Raises Fault."""
        keys = self.keys
        items: Any = value.get(keys.turns) if keys.turns else [value]
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            raise Fault(f"no `{keys.turns}` list")
        if keys.answer is None:
            chosen: Any = value.get(keys.chosen or "")
            if isinstance(chosen, str) and chosen:
                chosen = {self.speaker: keys.answers[0], self.text: chosen}
            return [*items, *(chosen if isinstance(chosen, list) else [chosen])] if chosen else items
        before: Any = value.get(keys.history)
        before = [] if absent(before) else before
        if not isinstance(before, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in before):
            raise Fault(f"`{keys.history}` is not a list of pairs, a question and its answer each")
        exchanges: list[tuple[Any, Any, dict]] = [(question, answer, {}) for question, answer in before]
        for item in items:
            asked = [item[key] for key in keys.question if not absent(item.get(key))]
            if len(asked) > 1 and not all(isinstance(text, str) for text in asked):
                raise Fault(f"{' and '.join(keys.question)} are not text")
            question = asked[0] if len(asked) == 1 else "\n".join(asked)
            others = {k: v for k, v in item.items() if k not in (*keys.question, keys.answer)} if keys.turns else {}
            exchanges.append((question, item.get(keys.answer), others))
        asks, answers, who, text = keys.asks[0], keys.answers[0], self.speaker, self.text
        pairs = (({who: asks, text: q}, {**others, who: answers, text: a}) for q, a, others in exchanges)
        return [turn for pair in pairs for turn in pair]

    def _split_system(
        self, value: Mapping, turns: Sequence[Mapping], images: list, notes: set[Note]
    ) -> tuple[str | None, Sequence[Mapping]]:
        """Return the system text, from a key or from the first turn, and the turns from the first question on."""
        all_speakers = [turn.get(self.speaker) for turn in turns]
        roles = [self.roles.get(speaker) if isinstance(speaker, str) else None for speaker in all_speakers]
        system, begin = value.get(self.keys.system), 0
        if absent(system):
            system = None
        elif not isinstance(system, str):
            raise Fault(f"`{self.keys.system}` is not text, got {short_repr(system)}")
        if all_speakers[0] in SYSTEM:
            self._learnt(turns[0], notes)
            first_turn, begin = self._text(turns[0].get(self.text), images, notes), 1
            if system not in (None, first_turn):
                raise Fault("two system texts, a key's and a turn's")
            system = first_turn
        if roles[begin : begin + 1] == [ANSWERS]:
            begin += 1
            notes.add((LEFT_OUT, "an answer before the first question"))
        rest = roles[begin:]
        if not rest or rest != [ASKS, ANSWERS] * (len(rest) // 2):
            shown = ", ".join(map(short_repr, all_speakers[:SHOWN])) + (", ..." if len(all_speakers) > SHOWN else "")
            expected = ", ".join((self.keys.asks[0], self.keys.answers[0]) * 2) + ", ..."
            raise Fault(f"turns must go {expected}; a conversation needs an answer, got {shown}")
        return system, turns[begin:]

    def _text(self, content: object, images: list, notes: set[Note]) -> str:
        """Return a turn's text, joined where it is a list of parts; an image part becomes a placeholder.

        The image of each placeholder joins `images`: None where it is not named here.
        """
        if isinstance(content, str):
            images += [None] * content.count(IMAGE)
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
        for key, value in _other_keys(turn, (self.speaker, self.text), REFUSED_TURN_KEYS, "a turn"):
            if key not in KEYS["learn"]:
                notes.add((NOT_READ, f"{short_repr(key)} of a turn"))
            elif value not in (0, 1):
                raise Fault(f"`{key}` of a turn is 0 or 1, false or true, got {short_repr(value)}")
            elif self.roles.get(turn.get(self.speaker)) != ANSWERS:
                if value != (key == MASKED):
                    notes.add((NOT_READ, f"{key} of a question"))
            elif value == (key == MASKED):
                learnt = False
                notes.add((NOT_LEARNT, f"an answer with {key}: {short_repr(value)}"))
        return learnt


def form(format: str | Mapping[str, Any]) -> Form:
    """Return the form of a format, named or given as its keys."""
    return Form(RowFormat.model_validate(registry.FORMATS[format] if isinstance(format, str) else format))


llava_row, message_row = form("llava").row, form("messages").row


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
    """Return the text of a part of a turn: for an image the placeholder, and the image (None: not named) joins `images`."""
    kind = part.get("type") or ("text" if absent(part.get("image")) else "image")
    if (type_ := TYPES.get(kind if isinstance(kind, str) else "")) is None:
        raise Fault(f"a part of a turn is text or image, got {short_repr(kind)}")
    is_text = type_ == "text"
    read, refused = (("type", "text"), REFUSED_TURN_KEYS) if is_text else (("type", *IMAGE_KEYS), REFUSED_KEYS)
    notes |= {(NOT_READ, f"{short_repr(key)} of a part") for key, _ in _other_keys(part, read, refused, "a part")}
    if is_text:
        images += [None] * str(part.get("text")).count(IMAGE)
        return part.get("text")
    for named in (value for value in map(part.get, IMAGE_KEYS) if isinstance(value, dict)):
        notes |= {(NOT_READ, f"{short_repr(key)} of a part") for key, _ in _other_keys(named, IMAGE_FIELDS, {})}
    images += _images(part, IMAGE_KEYS) or [None]
    return IMAGE


def _images(mapping: Mapping, keys: Sequence[str]) -> list[str | bytes]:
    """Return the images under these keys: paths, data URIs, or `{bytes, path}` or `{url}`, of which the bytes go first."""
    images: list[str | bytes] = []
    for value in map(mapping.get, keys):
        for image in value if isinstance(value, list) else [value]:
            if isinstance(image, dict):
                encoded, path = image.get("bytes"), image.get("path") or image.get("url")
                image = encoded if isinstance(encoded, bytes) else path if absent(encoded) and path else image
            if absent(image):
                continue
            if not isinstance(image, str | bytes):
                raise Fault(f"an image is named by one path, got {short_repr(image)}")
            images.append(_decoded(image) if isinstance(image, str) and ":" in image[:6] else image)
    return images


def _decoded(address: str) -> str | bytes:
    """Return the bytes of a data URI; a path as it is. Raises Fault for an address that would have to be fetched."""
    if match := DATA_URI.fullmatch(address):
        with suppress(ValueError):
            return b64decode(match[1], validate=True)
    if address.lower().startswith(("data:", "http://", "https://")):
        raise Fault(f"an image is a path or a data URI in base64, and is never fetched, got {short_repr(address)}")
    return address


def _without_images(
    texts: Sequence[str], images: int, placeholder: str
) -> tuple[Sequence[str], tuple[tuple[int, int], ...]]:
    """Return the questions among alternating texts, without image placeholders, and the `places` of a Row. Raises Fault.

    The only image of a row stands before its first question wherever that names it, as in LLaVA. Placeholders may be
    missing where the format's `placeholder` is optional.
    """
    questions, counts = texts[::2], [text.count(IMAGE) for text in texts]
    if placeholder == "optional" and images and not any(counts):
        return questions, ()
    if sum(counts) != images or any(counts[1::2]):
        expected = f"{images}, one in a question for each image" if images else "none, as the row has no image"
        found = ", ".join(f"{n} in turn {i + 1}" for i, n in enumerate(counts) if n) or "none"
        raise Fault(f"{IMAGE} placeholders: {expected}; got {found}")
    if counts[0] == images <= 1:
        first = texts[0].replace(f"{IMAGE}\n", "").replace(f"\n{IMAGE}", "").replace(IMAGE, "")
        return (first, *questions[1:]), ()
    # a line break between images and the text that they begin or end isn't part of the text
    pieces = [AT_THE_ENDS.sub(lambda found: found[0].replace("\n", ""), text).split(IMAGE) for text in questions]
    places = tuple((n, at) for n, split in enumerate(pieces) for at in accumulate(map(len, split[:-1])))
    return ["".join(split) for split in pieces], places if any(map(any, places)) else ()
