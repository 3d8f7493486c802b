"""Conversations as training examples: written down by a chat template, masked, cut, the picture prepared."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from jinja2 import TemplateError
from torch.utils.data import Dataset

from switchkd_cli.engine.batch import IGNORE, Example, Unusable
from switchkd_cli.engine.data.bad_rows import Ledger
from switchkd_cli.engine.data.image import opened
from switchkd_cli.engine.data.prompt_template import after_answer, end_of, opening, special, template_text
from switchkd_cli.engine.data.rows import Fault, Row, Rows
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage

LOOKED_AT = 500  # rows that are prepared before training to see whether the data is sound
KEPT = 512 << 20  # bytes of examples up to which a whole data set stays in memory
TRIES = 100  # rows that may fail one after another before a stand-in is given up

Piece = tuple[str, str]
"""(prompt, answer): text that is not supervised and the text after it that is."""


class NoStandIn(Exception):
    """Row after row can't be used: the pictures are gone, most likely."""


class Conversations(Dataset[Example]):
    """Rows as examples of a model: answers are supervised, the rest is not.

    An answer's supervised part ends with its last special token, if it has one. Tokens past `max_length` are cut;
    a picture never is: a row whose image tokens would not all fit is unusable. So is one that, cut or not, is longer than
    the `positions` that a model was made for (by who it is). For an unusable row another one, always the same, stands in
    and says so (`Example.instead_of`); `ledger` counts them.
    """

    def __init__(
        self,
        rows: Rows,
        inputs: InputProcessor,
        *,
        template: str | None = None,
        max_length: int | None = None,
        max_faults: float = 0.0,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        self.rows = rows
        self.positions = positions or {}
        self.inputs = inputs
        self.chat_template = template_text(template, inputs)
        self.max_length = max_length
        self.ledger = Ledger(rows.name, len(rows), max_faults)
        words = inputs.tokenizer
        end = end_of(words, after_answer(inputs, self.chat_template))
        self.end = None if end is None else words.convert_ids_to_tokens(end)
        """The token that the template ends an answer with; None where it has none."""
        marks = {*special(words), *([] if self.end is None else [self.end])}
        self._special = frozenset({*special(words).values(), *([] if end is None else [end])})
        self._marks = _marks(marks)
        self._opening = opening(words)
        self._looked_at = self._cut_short = 0
        self._kept: dict[int, Example] = {}
        self._bytes = 0  # of the largest example so far

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        met: list[Unusable] = []
        for candidate in stand_ins(index, len(self)):
            try:
                example = self._example(candidate)
                return replace(example, instead_of=tuple(met)) if met else example
            except Fault as fault:
                met.append(fault.at(candidate))
        raise NoStandIn(
            f"{self.rows.name}: {TRIES} rows one after another can't be used, the last: {met[-1]}"
        )

    @property
    def sizes(self) -> np.ndarray:
        """[N] characters of each row."""
        return self.rows.survey.sizes

    @property
    def pictured(self) -> np.ndarray:
        """[N] bool: rows with a picture."""
        return self.rows.survey.pictured

    @property
    def has_pictures(self) -> bool:
        """Whether some row has a picture, and was not found unusable so far."""
        return any(int(row) not in self.ledger.met for row in self.pictured.nonzero()[0])

    @property
    def fits(self) -> bool:
        """Whether the whole data set may stay in memory once it is prepared, as far as was seen."""
        return self._bytes * len(self) <= KEPT

    def inspect(self, *, pictures: bool = True) -> None:
        """Looks at the data before it is trained on: small sets whole, of large ones a sample (the same every time).

        Without `pictures` at the texts alone. Raises UserError when more rows can't be used than `max_faults` allows, or a path leaves the image folder.
        """
        rows: Sequence[int] = range(len(self))
        if len(self) > LOOKED_AT:
            rows = sorted(random.Random(0).sample(rows, LOOKED_AT))
        self._looked_at, self._cut_short = len(rows), 0
        seen = [row for index in rows for row in self._unusable(index, pictures)]
        self.ledger.open(self.rows.survey.faults, seen, len(rows))

    @property
    def notes(self) -> list[str]:
        """What of the rows is not used as the rest is, a line each, as far as `inspect` has seen."""
        notes = [*self.rows.survey.told()]
        if self._cut_short:
            share = f"{self._cut_short:,} of {self._looked_at:,} rows looked at"
            notes.append(f"cut: {share} are longer than max_length ({self.max_length:,} tokens)")
        return notes + self.ledger.notes

    def usable_again(self) -> list[str]:
        """Says so where rows that could not be used can be used now: their images came back meanwhile."""
        met = list(self.ledger.met)[:LOOKED_AT]
        usable = sum(not any(self._unusable(row)) for row in met)
        return (
            [f"{self.rows.name}: {usable} of {len(met)} rows that could not be used can be now"]
            if usable
            else []
        )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": {}}

    def _unusable(self, index: int, pictures: bool = True) -> Iterator[Unusable]:
        try:
            example = self._example(index) if pictures else self.written(index)
            self._cut_short += example.cut > 0
        except Fault as fault:
            yield fault.at(index)

    def _example(self, index: int) -> Example:
        if index in self._kept:
            return self._kept[index]
        example = self._build(index)
        self._bytes = max(self._bytes, example.nbytes)
        if self.fits:
            self._kept[index] = example
        return example

    def _build(self, index: int) -> Example:
        row = self.rows[index]
        try:
            usual = [self.inputs.placeholder_ids()] * len(row.images)
            example = self._written(row, usual)
            images = self._prepared(row)
            if (ids := [image.ids for image in images]) != usual:
                example = self._written(row, ids)
            tensors = tuple(image.inputs for image in images)
            position = self.inputs.position(example.input_ids, example.turn, tensors)
            return replace(example, images=tensors, position=position)
        except Fault as fault:
            raise Fault(str(fault), row.id, refused=fault.refused) from None

    def written(self, index: int) -> Example:
        """The row's text with its image tokens, no image opened. Raises Fault."""
        row = self.rows[index]
        return self._written(row, [self.inputs.placeholder_ids()] * len(row.images))

    def _prepared(self, row: Row) -> list[PreparedImage]:
        follow = self.rows.follow_links
        images = [opened(image, self.rows.images, follow_links=follow) for image in row.images]
        return self.inputs.prepare(images) if images else []

    def _written(self, row: Row, images: Sequence[Sequence[int]]) -> Example:
        """The row's text, with the token ids that stand for each of its images."""
        for text in (row.system or "", *(text for pair in row.exchanges for text in pair)):
            if mark := self._marks.search(text):
                raise Fault(f"its text holds {mark[0]}, a special token of the tokenizer")
        written = self._tokens(row, images)
        tokens, labels, turn = map(torch.tensor, self._cut(*written))
        visual = tokens == self.inputs.image_token
        return Example(row.id, tokens, labels, turn, visual, cut=len(written[0]) - len(tokens))

    def _tokens(self, row: Row, images: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
        """Token ids, labels and turns."""
        tokens, labels, turn = [], [], []
        independent = self.rows.turns == "independent"
        pieces = self._pieces(row)
        if row.system and _left_out(row.system, row.exchanges, "".join(prompt for prompt, _ in pieces)):
            raise Fault("the chat template leaves out the system's text")
        for number, (asked, told) in enumerate(self._encoded(pieces, images, independent)):
            if number == 0 and asked[: len(self._opening)] != self._opening:
                asked = self._opening + asked
            learnt = number - independent not in row.unlearnt
            tokens += asked + told
            labels += [IGNORE] * len(asked) + (self._supervised(told) if learnt else [IGNORE] * len(told))
            turn += [number if independent else 0] * (len(asked) + len(told))
        return tokens, labels, turn

    def _supervised(self, answer: list[int]) -> list[int]:
        """Labels of an answer: what the template writes after its end (a line break, mostly) is not learnt."""
        end = max((i for i, token in enumerate(answer) if token in self._special), default=len(answer) - 1)
        return answer[: end + 1] + [IGNORE] * (len(answer) - end - 1)

    def _cut(self, tokens: list[int], labels: list[int], turn: list[int]) -> tuple[list[int], ...]:
        """At most `max_length` of each. Raises Fault where this would cut the picture or leave no answer."""
        length = len(tokens) if self.max_length is None else self.max_length
        visual = self.inputs.image_token
        if visual in tokens[length:]:
            last = max(i for i, token in enumerate(tokens) if token == visual)
            raise Fault(f"its image ends at token {last + 1}, max_length is {length}")
        if all(label == IGNORE for label in labels[:length]):
            raise Fault("no supervised token" + (f" in the first {length}" if length < len(tokens) else ""))
        of_turn = Counter(turn[:length])
        reach = of_turn.pop(0, 0) + max(
            of_turn.values(), default=0
        )  # independent turns begin at one position
        if reach > (most := min(self.positions.values(), default=reach)):
            made_for = ", ".join(
                f"the {who} is made for {places:,}" for who, places in self.positions.items()
            )
            raise Fault(f"{reach:,} tokens, {made_for} (max_length: {most} would cut it)")
        return tokens[:length], labels[:length], turn[:length]

    def _pieces(self, row: Row) -> list[Piece]:
        """The row's text; for independent turns the first piece is the shared part."""
        images = len(row.images)
        if self.rows.turns == "chained":
            return self._chained(row.exchanges, images, row.system)
        pieces = [("", "")]
        for exchange in row.exchanges:
            ((prompt, answer),) = self._chained([exchange], images, row.system)
            before, image, prompt = prompt.rpartition(self.inputs.image_text)
            pieces[0] = (before + image, "")  # up to the last image; without one nothing is shared
            pieces.append((prompt, answer))
        return pieces

    def _chained(self, exchanges: Sequence[tuple[str, str]], images: int, system: str | None) -> list[Piece]:
        messages = [_message("system", system)] if system is not None else []
        said, pieces = "", []
        for number, (question, answer) in enumerate(exchanges):
            messages.append(_message("user", question, images if number == 0 else 0))
            asked = self._render(messages, generation=True)
            messages.append(_message("assistant", answer))
            told = self._render(messages, generation=False)
            if not (asked.startswith(said) and told.startswith(asked)):
                raise Fault("the chat template rewrites earlier turns")
            pieces.append((asked[len(said) :], told[len(asked) :]))
            said = told
        return pieces

    def _render(self, messages: Sequence[Mapping], *, generation: bool) -> str:
        try:
            return self.inputs.apply_chat_template(messages, self.chat_template, answer_next=generation)
        except TemplateError as error:
            raise Fault(f"the chat template refuses it: {error}") from error

    def _encoded(
        self, pieces: list[Piece], images: Sequence[Sequence[int]], independent: bool
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Each piece's tokens, cut from its text as a whole: alone, Llama's tokenizers put a space before it."""
        shared = pieces[:1]
        for seen in [shared, *([*shared, piece] for piece in pieces[1:])] if independent else [pieces]:
            tokens = self._split([text for piece in seen for text in piece], images)
            pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
            yield from pairs[-1:] if independent else pairs

    def _split(self, texts: Sequence[str], images: Sequence[Sequence[int]]) -> list[list[int]]:
        """The tokens of texts that stand one after another; a token is its first character's."""
        words = self.inputs.tokenizer
        told = words("".join(texts), add_special_tokens=False, return_offsets_mapping=True)
        begins = [min(start, end - 1) for start, end in told["offset_mapping"]]  # also of a trimmed space
        bounds = [bisect_left(begins, end) for end in accumulate(map(len, texts))]
        pieces = [told["input_ids"][a:b] for a, b in pairwise([0, *bounds])]
        of_images = iter(images)
        mark = words.convert_tokens_to_ids(self.inputs.image_text)
        return [
            [id for token in piece for id in (next(of_images) if token == mark else (token,))]
            for piece in pieces
        ]


def stand_ins(index: int, rows: int) -> Iterator[int]:
    """The row itself, then the rows that are tried in its place: the same ones in every process."""
    yield index
    others = random.Random(index)
    for _ in range(TRIES - 1):
        yield others.randrange(rows)


def _marks(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds special tokens in texts of data: there they would end a turn, or begin another speaker's."""
    words = sorted(map(re.escape, filter(None, tokens)), key=len, reverse=True)
    return re.compile("|".join(words) or r"(?!)")


def _message(role: str, text: str, images: int = 0) -> dict:
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def _left_out(system: str, exchanges: Sequence[tuple[str, str]], prompts: str) -> bool:
    """Whether a template that writes questions (`pretrain` does not) has not written the system's text."""
    asked = [question.strip() for question, _ in exchanges]
    return system.strip() not in prompts and any(question and question in prompts for question in asked)
