"""Turn rows of conversations into training examples: chat template, label mask, truncation, image processing.

`Mixture`: several data sets as one, of which a stage draws by weight.
"""

import copy
import random
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Self

import torch
from jinja2 import TemplateError
from PIL.Image import Image
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import ConcatDataset, Dataset

from switchkd_cli.engine.batch import IGNORE, Example, Unusable
from switchkd_cli.engine.data import prompt_template
from switchkd_cli.engine.data.byte_spans import Place, covered, number_spans, places, token_bytes, token_ends
from switchkd_cli.engine.data.image import images_of
from switchkd_cli.engine.data.rows import BadRows, Fault, Row, Rows
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import BUILT_IN

SAMPLE_ROWS = 500  # rows that are prepared before training to estimate the share of unusable ones
CACHE_BYTES = 512 << 20  # a data set whose prepared examples take no more bytes stays in memory
MAX_TRIES = 100  # rows that are tried in place of an unusable one before the run ends
OF_TEACHER = tuple(name for name, path in BUILT_IN.items() if path.language == "teacher")

Piece = tuple[str, str]
"""(prompt, answer): text without supervision, and the supervised text after it."""


Tokens = tuple[list[int], list[int], list[int | None]]
"""Of a piece: its prompt's and its answer's tokens, and the byte of the answer's text at which each of these ends."""


class NoStandIn(Exception):
    """Raised where MAX_TRIES rows one after another are unusable: most likely the images were removed."""


class Conversations(Dataset[Example]):
    """A data set of training examples, made from rows for one model. Only the answers are supervised.

    An answer's supervised part ends with its last special token, if it has one. An example is truncated to `max_length`
    tokens, but an image is never truncated: a row whose image tokens don't all fit is unusable. So is a row that is still
    longer than the `positions` of a model (by the model's role). An unusable row is replaced by another one, always the
    same, whose example lists the rows that it replaces (`Example.instead_of`); `bad_rows` counts the unusable rows.

    Where paths read other tokens than the student's, an example also has the row as these: `with_teacher`.
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
        # of texts and of images: the second may be those of a teacher with the same tokenizer
        self.inputs = self.image_inputs = inputs
        self.chat_template = prompt_template.template_text(template, inputs)
        self.max_length = max_length
        self.bad_rows = BadRows(rows.name, len(rows), max_faults)
        tokenizer = inputs.tokenizer
        end = prompt_template.end_token(tokenizer, prompt_template.tokens_after_answer(inputs, self.chat_template))
        self.end = None if end is None else tokenizer.convert_ids_to_tokens(end)
        """The token that ends an answer in the template; None where there is none."""
        special = prompt_template.special_tokens(tokenizer) | ({} if self.end is None else {self.end: end})
        self._special_ids = frozenset(special.values())
        # in a row's texts special tokens would end a turn or begin another one
        longest_first = sorted(map(re.escape, filter(None, special)), key=len, reverse=True)
        self._special_pattern = re.compile("|".join(longest_first) or r"(?!)")
        # the one that the tokenizer puts before every text: one for Llama, none for Qwen2
        self._start_tokens = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
        self._independent = rows.turns == "independent"
        if self._independent and inputs.chained_only:
            raise UserError(f"{rows.name}: turns: independent: {inputs.chained_only}", hint="leave out `turns`")
        self.others: dict[tuple[str, ...], Conversations] = {}
        """The same rows as other tokens, by the names of the paths that read them."""
        self.prompt: str | None = None  # what is read in place of each question
        self._token_bytes: list[bytes] | None = None  # where answers are aligned with those of another tokenizer
        self._sample_size = self._truncated = 0
        self._cache: dict[int, Example] = {}
        self.chosen: Sequence[int] = range(len(rows))
        """Numbers of the rows that are examples of this set: all, or those of a `part`."""
        self._largest = 0  # bytes of the largest example so far

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, chosen: Sequence[int]) -> Self:
        """Return the examples of the rows of these numbers alone, which stand in for one another, as a data set."""
        part = copy.copy(self)
        part.chosen = chosen
        return part

    def with_teacher(
        self,
        inputs: InputProcessor,
        positions: Mapping[str, int] | None = None,
        *,
        by_bytes: bool = False,
        readers: tuple[str, ...] = OF_TEACHER,
        prompt: str | None = None,
    ) -> "Conversations":
        """Return the data set with the same rows as a teacher's own tokens, which differ in the visual tokens alone.

        `readers`: the paths that read them. `prompt`: writes their questions (`PathSpec.prompt`). `by_bytes`: it has another tokenizer, too, and its own chat template; an example then has the spans of the answers'
        bytes that both end together, and `max_length` holds for each.
        """
        both, teacher = copy.copy(self), copy.copy(self)
        if by_bytes:
            teacher = Conversations(self.rows, inputs, max_length=self.max_length)
        teacher.image_inputs, teacher.positions, teacher.prompt, teacher.others = inputs, positions or {}, prompt, {}
        both.others, both._cache = {**self.others, readers: teacher}, {}
        for of in (both, teacher) if by_bytes else ():
            of._token_bytes = token_bytes(of.inputs.tokenizer)
        return both

    def __getitem__(self, index: int) -> Example:
        replaced: list[Unusable] = []
        for candidate in (self.chosen[place] for place in stand_ins(index, len(self))):
            try:
                example = self.example(candidate)
                return replace(example, instead_of=tuple(replaced)) if replaced else example
            except Fault as fault:
                replaced.append(fault.at(candidate))
        raise NoStandIn(f"{self.rows.name}: {MAX_TRIES} rows one after another can't be used, the last: {replaced[-1]}")

    @property
    def parts(self) -> Sequence[Self]:
        """The data sets that it is made of: see `Mixture`."""
        return (self,)

    def add_unusable(self, rows: Iterable[Unusable]) -> None:
        """Count rows that turned out unusable. Raises UserError where there are too many."""
        self.bad_rows.add(rows)

    @property
    def has_images(self) -> bool:
        """Whether any row has an image, without the rows that are known to be unusable."""
        return any(int(row) not in self.bad_rows.unusable for row in self.rows.survey.image_mask.nonzero()[0])

    @property
    def fits_in_memory(self) -> bool:
        """Whether all prepared examples fit into CACHE_BYTES, estimated by the largest one so far."""
        return self._largest * len(self) <= CACHE_BYTES

    def inspect(self, *, images: bool = True) -> None:
        """Check the data before training: all rows of a small set, a fixed random sample of a large one.

        Without `images` only the texts are checked. Raises UserError where more rows are unusable than `max_faults`
        allows, or where an image path leaves the image folder.
        """
        rows = self.chosen
        if len(self) > SAMPLE_ROWS:
            rows = sorted(random.Random(0).sample(rows, SAMPLE_ROWS))
        self._sample_size, self._truncated = len(rows), 0
        unusable = [row for index in rows for row in self._unusable(index, images)]
        self.bad_rows.check_sample(self.rows.survey.faults, unusable, len(rows))

    @property
    def notes(self) -> list[str]:
        """Lines about unusual rows: keys that are not read, answers not learnt, truncated and unusable rows (`inspect`)."""
        notes = list(self.rows.survey.note_lines())
        if self._truncated:
            share = f"{self._truncated:,} of {self._sample_size:,} rows checked"
            notes.append(f"cut: {share} are longer than max_length ({self.max_length:,} tokens)")
        return notes + self.bad_rows.notes

    def recovered_rows(self) -> list[str]:
        """Return a line about unusable rows that are usable now, because their images are back; empty if there are none."""
        rows = list(self.bad_rows.unusable)[:SAMPLE_ROWS]
        usable = sum(not any(self._unusable(row)) for row in rows)
        return [f"{self.rows.name}: {usable} of {len(rows)} rows that could not be used can be now"] if usable else []

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": {}}

    def _unusable(self, index: int, images: bool = True) -> Iterator[Unusable]:
        """Yield the row if it is unusable; without `images` only its text is checked."""
        try:
            example = self.example(index) if images else self.text_example(index)
            self._truncated += example.cut > 0
        except Fault as fault:
            yield fault.at(index)

    def example(self, index: int) -> Example:
        """Return the example of the row of this number. Raises Fault for an unusable row."""
        if index in self._cache:
            return self._cache[index]
        example = self._build(index)
        self._largest = max(self._largest, example.nbytes)
        if self.fits_in_memory:
            self._cache[index] = example
        return example

    def _build(self, index: int) -> Example:
        row = self.rows[index]
        try:
            return self._read_by_all(row, images_of(row, self.rows))
        except Fault as fault:
            raise Fault(str(fault), row.id, refused=fault.refused) from None

    def text_example(self, index: int) -> Example:
        """Return the row's example with images of the usual size, without opening its own. Raises Fault."""
        return self._read_by_all(self.rows[index], None)

    def _read_by_all(self, row: Row, opened: Sequence[Image] | None) -> Example:
        """Return the row's example, and as `others` read it. `opened`: its images; None: usual ones stand for them.

        A teacher of another tokenizer has its own images, too, as its processor prepares them.
        """

        def prepared(inputs: InputProcessor) -> list[PreparedImage]:
            return [inputs.usual] * len(row.images) if opened is None else inputs.prepare(opened)

        images = prepared(self.image_inputs)
        example, ends = self._read(row, images)
        others = {}
        for names, reader in self.others.items():
            by_bytes = reader._token_bytes is not None
            seen = images if reader.image_inputs is self.image_inputs else prepared(reader.image_inputs)
            answers = example.labels[example.labels != IGNORE]
            other, theirs = reader._read(row, seen, cut=None if by_bytes else example.cut, answers=len(answers))
            if by_bytes:
                spans, other_spans = number_spans(ends, theirs)
                sizes = [len(answer.strip().encode()) for _, answer in row.exchanges]
                of_answers = sum(size for number, size in enumerate(sizes) if number not in row.unlearnt)
                aligned = torch.tensor([covered(ends, spans, sizes), of_answers])
                example = replace(example, spans=torch.tensor(spans), aligned=aligned)
                other = replace(other, spans=torch.tensor(other_spans))
            elif reader.prompt is not None:
                if not torch.equal(answers, other.labels[other.labels != IGNORE]):
                    raise Fault(f"its answers are other tokens after the prompt {reader.prompt!r}")
            elif not torch.equal(*(of.input_ids[~of.image] for of in (example, other))):
                raise Fault("student and teacher read other texts: their images have other marks")
            others[names] = other if by_bytes else replace(other, images=())
        return replace(example, others=others)

    def _read(
        self, row: Row, images: Sequence[PreparedImage], cut: int | None = None, answers: int | None = None
    ) -> tuple[Example, list[Place | None]]:
        """Return the row's example for this model alone, and where its answers' tokens end.

        `cut`: how many tokens are cut off at its end (None: those beyond `max_length`), with a prompt all that follow so
        many tokens of `answers`.
        """
        row = self._prompted(row)
        for text in (row.system or "", *(text for pair in row.exchanges for text in pair)):
            if match := self._special_pattern.search(text):
                raise Fault(f"its text holds {match[0]}, a special token of the tokenizer")
        pieces = self._pieces(row)
        if row.system and row.system.strip() not in (written := "".join(prompt for prompt, _ in pieces)):
            questions = [question.strip() for question, _ in row.exchanges]
            if any(question and question in written for question in questions):  # `pretrain` writes no questions
                raise Fault("the chat template leaves out the system's text")
        tokens, labels, turn = [], [], []
        found: list[Place | None] = []
        apart = self._apart(row)
        before = len(row.exchanges) - len(pieces)  # exchanges that are part of a prompt; -1 where a piece is none
        parts = self._tokenize(pieces, [image.text for image in images], apart=apart)
        for number, (prompt, answer, ends) in enumerate(parts):
            if number == 0 and prompt[: len(self._start_tokens)] != self._start_tokens:
                prompt = self._start_tokens + prompt
            learnt = 0  # of an answer; tokens after its last special token (mostly a line break) are not learnt
            exchange = number + before
            if exchange not in row.unlearnt:
                special = (i for i, token in enumerate(answer) if token in self._special_ids)
                learnt = max(special, default=len(answer) - 1) + 1
            tokens += prompt + answer
            labels += [IGNORE] * len(prompt) + answer[:learnt] + [IGNORE] * (len(answer) - learnt)
            turn += [number if apart else 0] * (len(prompt) + len(answer))
            if self._token_bytes is not None and learnt:
                written, text = pieces[number][1], row.exchanges[exchange][1].strip()
                if (begin := written.find(text, self._before_answer)) < 0:
                    raise Fault("the chat template changes the text of an answer")
                of_text = slice(first := len(written[:begin].encode()), first + len(text.encode()))
                ended = answer[learnt - 1] in self._special_ids
                found += [None] * len(prompt)
                found += places(exchange, ends[:learnt], written.encode(), of_text, ended=ended)
            found += [None] * (len(tokens) - len(found))
        kept = len(tokens) if self.max_length is None else self.max_length
        kept = kept if cut is None else len(tokens) - cut
        if self.prompt is not None:
            learnt_at = [at for at, label in enumerate(labels) if label != IGNORE][:answers]
            kept = learnt_at[-1] + 1 if cut and learnt_at else len(tokens)
        self._check_cut(tokens, labels, turn, kept)
        if row.paired and any(label != IGNORE for label in labels[kept:]):
            raise Fault(f"a pair of answers is compared whole, max_length is {kept}")
        ids, learnt_ids, turns = (torch.tensor(of[:kept]) for of in (tokens, labels, turn))
        shown = tuple(image.inputs for image in images)
        seen = ids == self.image_inputs.image_token, shown, self.image_inputs.position(ids, turns, shown)
        example = Example(row.id, ids, learnt_ids, turns, *seen, cut=len(tokens) - len(ids), paired=row.paired)
        return example, found[:kept]

    def _prompted(self, row: Row) -> Row:
        """Return the row with its questions as the prompt writes them; an image that begins a question stays at its beginning."""
        if self.prompt is None:
            return row
        around = self.prompt.split("{question}")
        parts = [[text.replace("{answer}", answer) for text in around] for _, answer in row.exchanges]
        asked = tuple((question.join(of), answer) for of, (question, answer) in zip(parts, row.exchanges, strict=True))
        places = tuple((at, offset and offset + len(parts[at][0])) for at, offset in row.places)
        return replace(row, exchanges=asked, places=places)

    @cached_property
    def _before_answer(self) -> int:
        """How many characters the chat template writes between the beginning of an answer's turn and its text."""
        marked = (_message("user", "?"), _message("assistant", prompt_template.ANSWER))
        begun, whole = (self._render(marked[:count], generation=count == 1) for count in (1, 2))
        return max(0, whole.find(prompt_template.ANSWER, len(begun)) - len(begun))

    def _check_cut(self, tokens: list[int], labels: list[int], turn: list[int], length: int) -> None:
        """Raise Fault where only the first `length` tokens would lack some of an image's or any answer, or be too many."""
        visual = self.image_inputs.image_token
        if visual in tokens[length:]:
            last = max(i for i, token in enumerate(tokens) if token == visual)
            raise Fault(f"its image ends at token {last + 1}, max_length is {length}")
        if all(label == IGNORE for label in labels[:length]):
            raise Fault("no supervised token" + (f" in the first {length}" if length < len(tokens) else ""))
        turn_lengths = Counter(turn[:length])
        # independent turns all start at the same position
        positions = turn_lengths.pop(0, 0) + max(turn_lengths.values(), default=0)
        if positions > (most := min(self.positions.values(), default=positions)):
            limits = ", ".join(f"the {role} is made for {limit:,}" for role, limit in self.positions.items())
            raise Fault(f"{positions:,} tokens, {limits} (max_length: {most} would cut it)")

    def _pieces(self, row: Row) -> list[Piece]:
        """Return the row's text as pieces; with independent turns the first piece is the part that all turns share.

        The answers of a pair are independent turns, too, each behind the history and the question.
        """
        if not self._apart(row):
            return self._chained(row)
        if row.paired and self.inputs.chained_only:
            raise Fault(f"two answers to one question: {self.inputs.chained_only}", refused=True)
        if row.places and not row.paired:
            raise Fault("independent turns share only images in front of the first question")
        history, pieces = row.exchanges[:-2] if row.paired else (), [("", "")]
        for exchange in row.exchanges[len(history) :]:
            *earlier, (prompt, answer) = self._chained(replace(row, exchanges=(*history, exchange)))
            prompt = "".join(text for piece in earlier for text in piece) + prompt
            before, image, prompt = prompt.rpartition(self.inputs.image_text)
            pieces[0] = (before + image, "")  # up to the last image; without one nothing is shared
            pieces.append((prompt, answer))
        return pieces

    def _apart(self, row: Row) -> bool:
        """Whether the row's exchanges are turns that don't see one another."""
        return self._independent or row.paired

    def _chained(self, row: Row) -> list[Piece]:
        """Return one piece an exchange, each written by the template after the exchanges before it."""
        messages = [_message("system", row.system)] if row.system is not None else []
        places = row.places or [(0, 0)] * len(row.images)
        before, pieces = "", []
        for number, (question, answer) in enumerate(row.exchanges):
            messages.append(_message("user", question, [offset for at, offset in places if at == number]))
            with_prompt = self._render(messages, generation=True)
            messages.append(_message("assistant", answer))
            with_answer = self._render(messages, generation=False)
            if not (with_prompt.startswith(before) and with_answer.startswith(with_prompt)):
                raise Fault("the chat template rewrites earlier turns")
            pieces.append((with_prompt[len(before) :], with_answer[len(with_prompt) :]))
            before = with_answer
        return pieces

    def _render(self, messages: Sequence[Mapping], *, generation: bool) -> str:
        try:
            return self.inputs.apply_chat_template(messages, self.chat_template, answer_next=generation)
        except TemplateError as error:
            raise Fault(f"the chat template refuses it: {error}") from error

    def _tokenize(self, pieces: list[Piece], images: Sequence[str], *, apart: bool) -> Iterator[Tokens]:
        """Yield each piece's (prompt, answer) tokens, and the byte of the answer's piece at which each of these ends.

        They are cut out of the tokens of the whole text: Llama's tokenizers put a space before a text of its own.
        """
        shared = pieces[:1]
        for visible in [shared, *([*shared, piece] for piece in pieces[1:])] if apart else [pieces]:
            tokens = self._split([text for piece in visible for text in piece], images)
            pairs = [(prompt, *answer) for (prompt, _), answer in zip(tokens[::2], tokens[1::2], strict=True)]
            yield from pairs[-1:] if apart else pairs

    def _split(self, texts: Sequence[str], images: Sequence[str]) -> list[tuple[list[int], list[int | None]]]:
        """Tokenize the joined texts and return the tokens of each; a token belongs to the text of its first character.

        With them, if answers are aligned by bytes, the byte of that text at which each ends (`token_ends`).
        """
        try:
            texts = self.inputs.with_images(texts, images)
        except ValueError as error:
            raise Fault(str(error)) from None
        text, tokenizer = "".join(texts), self.inputs.tokenizer
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        begins = [min(start, end - 1) for start, end in offsets]  # also for a trimmed space
        bounds = pairwise([0, *(bisect_left(begins, end) for end in accumulate(map(len, texts)))])
        ends = token_ends([self._token_bytes[id] for id in ids], text, offsets) if self._token_bytes else []
        before = [0, *accumulate(len(text.encode()) for text in texts)]
        parts = zip(bounds, before, strict=False)
        return [(ids[a:b], [None if end is None else end - at for end in ends[a:b]]) for (a, b), at in parts]


class Mixture(ConcatDataset[Example]):
    """The examples of several data sets, numbered one set after another, of which training takes shares by `weights`.

    An unusable row's number counts through the sets, too. A row is stood in for by one of its own set. The sets have one
    chat template: the recipe's check has seen to it.
    """

    def __init__(self, parts: Sequence[Conversations], weights: Sequence[float]) -> None:
        super().__init__(parts)
        self.parts = parts
        self.shares = [weight / sum(weights) for weight in weights]
        self.chat_template, self.end = parts[0].chat_template, parts[0].end
        self.held_out: Mixture | None = None
        """Examples of the same sets that training leaves out, for a mixer to read."""
        self._row_ends = list(accumulate(len(part.rows) for part in parts))

    def __getitem__(self, index: int) -> Example:
        number = bisect_right(self.cumulative_sizes, index)
        example = self.parts[number][index - [0, *self.cumulative_sizes][number]]
        first = [0, *self._row_ends][number]
        return replace(example, instead_of=tuple(replace(row, row=first + row.row) for row in example.instead_of))

    def add_unusable(self, rows: Iterable[Unusable]) -> None:
        """Count rows that turned out unusable, each in its set. Raises UserError where a set has too many."""
        for row in rows:
            number = bisect_right(self._row_ends, row.row)
            self.parts[number].add_unusable([replace(row, row=row.row - [0, *self._row_ends][number])])


Examples = Conversations | Mixture
"""What a stage trains on."""


class Variants(Dataset[Example]):
    """Examples in variants: number `row + variant * rows`; of variant 0 the images are as they are.

    Contrast and brightness of the others change by random amounts from the seed, with a standard deviation of `strength`,
    in units of the pixels' own: what an image shows stays the same. Student and teacher see the same change.
    """

    def __init__(self, data: Examples, strength: float, seed: int) -> None:
        self.data, self.strength, self.seed, self.parts = data, strength, seed, data.parts

    def __getitem__(self, index: int) -> Example:
        example = self.data[index % len(self.data)]
        if index < len(self.data):
            return example
        draw = torch.Generator().manual_seed(self.seed + (index << 32))
        contrast, brightness = (self.strength * torch.randn(2, generator=draw)).tolist()

        def changed(of: Tensor) -> Tensor:
            return of * (1 + contrast) + brightness if of.is_floating_point() else of

        others = {names: replace(of, images=tree_map(changed, of.images)) for names, of in example.others.items()}
        return replace(example, images=tree_map(changed, example.images), others=others)


def stand_ins(index: int, rows: int) -> Iterator[int]:
    """Yield an example's index, then those of the examples to try in its place: the same ones in every process."""
    yield index
    others = random.Random(index)
    for _ in range(MAX_TRIES - 1):
        yield others.randrange(rows)


def _message(role: str, text: str, images: Sequence[int] = ()) -> dict:
    """Return a message in parts. `images`: for each of its images, the number of the text's characters before it."""
    content: list[dict] = []
    for begin, end in pairwise([0, *images]):
        content += [{"type": "text", "text": text[begin:end]}] * (end > begin) + [{"type": "image"}]
    return {"role": role, "content": [*content, {"type": "text", "text": text[max(images, default=0) :]}]}
