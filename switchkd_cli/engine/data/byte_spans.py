"""Spans of bytes of an answer's text that two tokenizers end together."""

import re
from collections.abc import Collection, Sequence
from itertools import accumulate

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

Place = tuple[int, float | None, int, bytes]
"""Where a token of an answer ends: the answer's number; the byte of its text (infinity: with the answer's end token; None: not
known); how many tokens before it end at the same byte; and outside of the text, what a template wrote up to there."""
END = float("inf")
BYTE = re.compile("<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes of text that each id stands for: of a byte-level token, of <0xE4>, of a word behind SentencePiece's ▁."""
    added, byte_of = tokenizer.added_tokens_decoder, {sign: byte for byte, sign in bytes_to_unicode().items()}
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)

    def spelled(id: int, string: str) -> bytes:
        if id in added:
            return string.encode()
        if byte_level and all(sign in byte_of for sign in string):
            return bytes(byte_of[sign] for sign in string)
        if match := BYTE.fullmatch(string):
            return bytes.fromhex(match[1])
        return string.replace("▁", " ").encode()

    strings = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [spelled(id, string or "") for id, string in enumerate(strings)]


def token_ends(tokens: Sequence[bytes], text: str, offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return the number of bytes of `text` up to the end of each token.

    Offsets in characters don't say how the bytes of one character are divided among tokens, so each token's own bytes are
    followed through the text; a space that a normalizer put in front is in the token alone. Where the text differs, because a
    normalizer changed it, only the ends of the `offsets` count: None for a token that shares characters with the next.
    """
    written, size = text.encode(), [0, *accumulate(len(character.encode()) for character in text)]
    ends: list[int | None] = []
    at, reach, lost = 0, 0, False
    for token, (_, end), following in zip(tokens, offsets, [*offsets[1:], (len(text), 0)], strict=False):
        reach = max(reach, end)
        fits = (form for form in (token, token.removeprefix(b" ")) if not lost and written.startswith(form, at))
        if (found := next(fits, None)) is not None:
            at += len(found)
        elif following[0] >= reach:
            at, lost = size[reach], False
        else:
            lost = True
        ends.append(None if lost else at)
    return ends


def places(answer: int, ends: Sequence[int | None], written: bytes, text: slice, *, ended: bool) -> list[Place]:
    """Return the places of an answer's learnt tokens by their ends in what a template wrote, of which `text` is the answer's.

    `ended`: the last one is the end token.
    """
    found: list[Place] = []
    for i, end in enumerate(ends):
        if ended and i + 1 == len(ends):
            found.append((answer, END, 0, b""))
        elif end is None:
            found.append((answer, None, 0, b""))
        else:
            outside = written[:end] if end <= text.start else written[text.stop : end]
            found.append((answer, end - text.start, ends[:i].count(end), outside))
    return found


def number_spans(ours: Sequence[Place | None], theirs: Sequence[Place | None]) -> tuple[list[int], list[int]]:
    """Return the number of each token's span, -1 of a token that is in none, for two tokenisations of one text.

    A span ends where both tokenisations end a token. None are tokens that are not learnt.
    """
    common = {place for place in {*ours} & {*theirs} if place is not None and place[1] is not None}
    return _number(ours, common), _number(theirs, common)


def _number(of: Sequence[Place | None], common: Collection[Place]) -> list[int]:
    numbers, count = [-1] * len(of), 0
    answer, begin = -1, 0  # of the open span
    for i, place in enumerate(of):
        if place is not None and place[0] != answer:
            answer, begin = place[0], i
        if place in common:
            numbers[begin : i + 1] = [count] * (i + 1 - begin)
            begin, count = i + 1, count + 1
    return numbers


def covered(ours: Sequence[Place | None], spans: Sequence[int], sizes: Sequence[int]) -> int:
    """Return how many bytes of the answers, of these `sizes`, lie in spans."""
    known = (place for place, span in zip(ours, spans, strict=True) if place is not None and span >= 0)
    reach = {answer: end for answer, end, *_ in known if end is not None}  # of an answer's ends, the last
    return sum(int(max(0, min(end, sizes[answer]))) for answer, end in reach.items())
