"""A look at a data set for a plan: how long its rows are, from a sample of them or from published figures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchkd_cli import registry
from switchkd_cli.engine.batch import POSITIONS, Example, collate
from switchkd_cli.engine.cost.model_facts import Known, published
from switchkd_cli.engine.cost.workload import Rows
from switchkd_cli.engine.data.bad_rows import Ledger
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Fault
from switchkd_cli.engine.data.rows import Rows as Read
from switchkd_cli.engine.models.llava import Blueprint, image_tokens_of
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import DataSet

SAMPLED = 200  # rows that are looked at
STEPS = 4  # of the rarer kind of rows, from which a mean step is taken
CHARACTERS = 4  # of English text for one token, where no tokenizer is here
CUT = 2048  # tokens at which rows are taken to be cut where only published figures are at hand (TinyLLaVA's limit)


@dataclass(frozen=True)
class Seen:
    """Tokens of one row, those of its picture, and how many positions predict an answer, text, or anything."""

    length: int
    image: int
    answer: int
    text: int
    all: int


@dataclass(frozen=True)
class Look:
    """A data set of `rows` rows, `seen` of them looked at in random order. `apart`: turns don't see one another.

    `notes` say what of its rows can't be used, or not as the rest is. `pictured`: some row, looked at or not, has an image.
    """

    rows: int
    seen: tuple[Seen, ...]
    apart: bool
    source: str
    notes: tuple[str, ...] = ()
    pictured: bool = True

    def mean(self, what: str) -> float:
        return sum(getattr(row, what) for row in self.seen) / len(self.seen)

    def micro_batches(self, size: int, on: str, *, grouped: bool) -> Iterator[Rows]:
        """The sample as padded micro-batches, where `grouped` the longest rows of all in one: what takes most memory.

        `on` is the widest kind of position that a term looks at.
        """
        rows = list(self.seen)
        if grouped:
            rows.sort(key=lambda row: (row.image > 0, -row.length))
        rows *= -(-size // len(rows))
        for start in range(0, len(rows) - size + 1, size):
            yield self.padded(rows[start : start + size], on)

    def steps(self, batch: int, size: int, *, grouped: bool) -> Iterator[Sequence[Seen]]:
        """The micro-batches of some steps of `batch` rows, put together as training does (`grouped_order`)."""
        pictured = [row for row in self.seen if row.image > 0]
        kinds = [pictured, [row for row in self.seen if not row.image]] if grouped else [list(self.seen)]
        kinds = [kind for kind in kinds if kind]
        times = -(-STEPS * batch // min(map(len, kinds)))  # each kind as often as the rarest takes
        for kind in kinds:
            rows = kind * times
            for start in range(0, len(rows) - batch + 1, batch):
                step = rows[start : start + batch]
                if grouped:
                    step.sort(key=lambda row: -row.length)
                yield from (step[first : first + size] for first in range(0, batch, size))

    def padding(self, batch: int, size: int, *, grouped: bool) -> float:
        """The share of padding among the tokens of such steps, in [0, 1)."""
        places = tokens = 0
        for together in self.steps(batch, size, grouped=grouped):
            places += len(together) * max(row.length for row in together)
            tokens += sum(row.length for row in together)
        return 1 - tokens / places

    def padded(self, together: Sequence[Seen], on: str) -> Rows:
        """One micro-batch."""
        length = max(row.length for row in together)
        return Rows(
            rows=len(together),
            pictures=sum(row.image > 0 for row in together),
            length=length,
            kept=max(1, sum(getattr(row, on) for row in together)),
            masked=self.apart or any(row.length < length for row in together),
            apart=self.apart,
        )


def look(spec: DataSet, model: Known, root: Path, scratch: Path, positions: Mapping[str, int]) -> Look | None:
    """The data set's rows as `model` would read them; None where neither it nor figures of it are at hand.

    `positions`: see `Conversations`.
    An index of a large file is kept under `root`, if that exists; else, and for rows that are drawn here, all that is
    written goes to `scratch`. Raises UserError for a file that is no data, and, as training would before its first step,
    for more rows that can't be used than the data set allows; without the pictures, as far as the texts show.
    """
    parameters = dict(spec.parameters)
    if spec.source == "playground":
        drawn = parameters | {"pictures": min(parameters["pictures"], SAMPLED // 4)}
        return _sampled(spec, drawn, model, scratch, positions, parameters["pictures"])
    file = Path(parameters.get("file", ""))
    if "file" in parameters and not file.is_file():
        return _published(spec, model, file.name)
    pictures = True
    if parameters.get("images") and not Path(parameters["images"]).is_dir():
        parameters["images"], pictures = str(scratch), False  # texts are enough
    cache = root if root.is_dir() else scratch
    return _sampled(spec, parameters, model, cache, positions, pictures=pictures)


def _sampled(
    spec: DataSet,
    parameters: Mapping[str, Any],
    model: Known,
    cache: Path,
    positions: Mapping[str, int],
    rows: int | None = None,
    *,
    pictures: bool = False,
) -> Look:
    read = registry.resolve("source", spec.source)(cache, **parameters)
    chosen = list(range(len(read)))
    random.Random(0).shuffle(chosen)
    chosen = chosen[:SAMPLED]
    if model.blueprint is None:
        ledger = Ledger(read.name, len(read), spec.max_faults)
        ledger.open(read.survey.faults, (), 1)
        notes, pictured = [*read.survey.told(), *ledger.notes], bool(read.survey.pictured.any())
        tokens, longest = image_tokens_of(model.config), spec.max_length or CUT
        found = _readable(lambda index: _guessed(read, index, tokens, longest), chosen)
        told = f"a look at {len(found)} rows, a token taken as {CHARACTERS} characters"
    else:
        limits = {"max_length": spec.max_length, "max_faults": spec.max_faults, "positions": positions}
        of, size = model.blueprint, model.blueprint.image_tokens
        data = Conversations(read, of.processor, size, template=spec.template, **limits)
        data.inspect(pictures=pictures)
        notes, pictured = data.notes, data.has_pictures
        found = _readable(lambda index: _counted(data.written(index), of), chosen)
        told = f"a look at {len(found)} rows"
    if not found:
        raise UserError(
            f"{read.name}: none of {len(chosen):,} rows that were looked at can be used",
            hint="; ".join(notes),
        )
    apart = read.turns == "independent"
    return Look(rows or len(read), tuple(found), apart, told, tuple(notes), pictured)


def _readable(look_at: Callable[[int], Seen], chosen: Sequence[int]) -> list[Seen]:
    found = []
    for index in chosen:
        with suppress(Fault):
            found.append(look_at(index))
    return found


def _counted(example: Example, blueprint: Blueprint) -> Seen:
    padding = blueprint.processor.tokenizer.pad_token_id
    batch = collate([example], image_token=blueprint.config.image_token_id, pad_token=padding)
    positions = {on: int(batch.predicting(on).sum()) for on in POSITIONS}
    return Seen(len(example.input_ids), **positions)


def _guessed(read: Read, index: int, image_tokens: int, longest: int) -> Seen:
    row = read[index]
    learnt = [told for i, (_, told) in enumerate(row.exchanges) if i not in row.unlearnt]
    answer = sum(map(len, learnt)) // CHARACTERS
    return _cut(
        image_tokens if row.image is not None else 0, row.size // CHARACTERS - answer, answer, longest
    )


def _cut(image: int, prompt: int, answer: int, longest: int) -> Seen:
    """A row of so many tokens, its end cut off."""
    length = min(image + prompt + answer, longest)
    answer = max(0, min(answer, length - image - prompt))
    return Seen(length, image, answer, max(0, length - image - 1), length - 1)


def _published(spec: DataSet, model: Known, name: str) -> Look | None:
    facts = published()["files"].get(name)
    if facts is None:
        return None
    longest, tokens = spec.max_length or CUT, image_tokens_of(model.config)
    seen = [
        _cut(tokens * kind["pictured"], kind["prompt"], kind["answer"], longest)
        for kind in facts["kinds"]
        for _ in range(round(kind["share"] * SAMPLED))
    ]
    random.Random(0).shuffle(seen)
    rows = min(spec.parameters.get("limit") or facts["rows"], facts["rows"])
    return Look(
        rows,
        tuple(seen),
        spec.parameters.get("turns") == "independent",
        "an assumption, as the file is not here",
    )
