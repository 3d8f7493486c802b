"""A sample of a data set for a plan: how many tokens its examples have, read from the data or from published figures."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os.path import exists
from pathlib import Path

from switchkd_cli import registry
from switchkd_cli.engine.batch import POSITIONS, Example, collate
from switchkd_cli.engine.build import open_data, shown_to
from switchkd_cli.engine.cost.model_facts import KnownModel, published
from switchkd_cli.engine.cost.workload import MicroBatch, Models
from switchkd_cli.engine.data.rows import BadRows, Fault, Rows
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.processors import probes
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.training.own_answers import AT_ONCE, gets_own, prompts
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.named_files import data_files
from switchkd_cli.recipe.run import DATASET
from switchkd_cli.recipe.schema import LEARNING, DataSet, Stage
from switchkd_cli.report.grouping import grouped as by_key

SAMPLE_SIZE = 200  # examples
STEPS = 4  # of the rarer kind of examples (with or without an image), from which a mean step is computed
CHARACTERS = 4  # of English text for one token, where the tokenizer is not on this machine
ASSUMED_MAX_LENGTH = 2048  # tokens, where only published figures are known (TinyLLaVA's limit)


@dataclass(frozen=True)
class RowLengths:
    """Tokens of one example, those of its `images`, and how many positions predict an answer, text, or anything.

    `prompts`: the tokens in front of each answer.
    """

    length: int
    images: int
    image: int
    answer: int
    text: int
    all: int
    prompts: tuple[int, ...] = ()
    teacher: RowLengths | None = None
    """Of the teacher's own tokens; None: it reads the student's."""


@dataclass(frozen=True)
class DataSample:
    """A data set of `rows` examples and the `lengths` of a random sample of them.

    `independent`: turns don't see one another. `source`: where the lengths are from. `notes` say which examples can't
    be used, or only in part. `has_images`, `has_pairs`: some example of the data set, sampled or not, has one.
    `opened`: its rows, where all of them are here with their images.
    """

    rows: int
    lengths: tuple[RowLengths, ...]
    independent: bool
    source: str
    notes: tuple[str, ...] = ()
    has_images: bool = True
    has_pairs: bool = True
    opened: Rows | None = None

    @staticmethod
    def of_stage(stage: Stage, samples: Mapping[str, DataSample | None]) -> DataSample | None:
        """Return a sample of what a stage trains on, of a mixture by its weights; None where a data set is unknown."""
        parts = [sample for name in stage.trained_on if (sample := samples.get(name)) is not None]
        if len(parts) < len(stage.trained_on):
            return None
        if isinstance(stage.data, str):
            return parts[0]
        draw = random.Random(0)
        drawn = draw.choices(parts, [portion.weight for portion in stage.data], k=SAMPLE_SIZE)
        lengths = tuple(draw.choice(part.lengths) for part in drawn)
        source = "; ".join(dict.fromkeys(part.source for part in parts))
        return DataSample(sum(part.rows for part in parts), lengths, any(part.independent for part in parts), source)

    def seen_by(self, student: float, teacher: float) -> DataSample:
        """Return it with rows for a teacher, where none were made, by the visual tokens of an image of both models."""
        if self.lengths[0].teacher is not None or student == teacher:
            return self

        def theirs(row: RowLengths) -> RowLengths:
            image = round(row.image * teacher / student)
            return replace(row, length=row.length + image - row.image, image=image)

        return replace(self, lengths=tuple(replace(row, teacher=theirs(row)) for row in self.lengths))

    def of_images(self, models: Models) -> Models:
        """Return the models for images as large as those of the rows."""

        def sized(name: str, shape: ModelShape) -> ModelShape:
            rows = [row if name in LEARNING else row.teacher or row for row in self.lengths]
            return shape.of_images(sum(row.image for row in rows) / max(1, sum(row.images for row in rows)))

        return replace(models, shapes={name: sized(name, shape) for name, shape in models.shapes.items()})

    def mean(self, field: str) -> float:
        return sum(getattr(row, field) for row in self.lengths) / len(self.lengths)

    @property
    def lengths_by_part(self) -> dict[str, float]:
        """Tokens of the mean example by part, and of the longest."""
        image, answer, length = map(self.mean, ("image", "answer", "length"))
        longest = max(row.length for row in self.lengths)
        return {"image": image, "prompt": length - image - answer, "answer": answer, "longest row": longest}

    def micro_batches(
        self, batch: int, size: int, on: str, tokens: Sequence[float], *, grouped: bool
    ) -> Counter[MicroBatch]:
        """Count the micro-batches of some steps of `batch` examples in the order of training (`grouped_order`); see `padded`."""
        counts: Counter[MicroBatch] = Counter()
        kinds = by_key((grouped and row.image > 0, row) for row in self.lengths)
        repeats = -(-STEPS * batch // min(map(len, kinds.values())))  # as many as the rarest kind needs
        for kind in kinds.values():
            rows = kind * repeats
            for start in range(0, len(rows) - batch + 1, batch):
                step = rows[start : start + batch]
                if grouped:
                    step.sort(key=lambda row: -row.length)
                counts.update(self.padded(step[first : first + size], on, tokens) for first in range(0, batch, size))
        return counts

    def own_answers(self, batch: int, share: float, tokens: float) -> Counter[MicroBatch]:
        """Count the prompts that are answered together before some steps of `batch` examples (`OwnAnswers`).

        `tokens`: of an image, or tile. The images of a step are those of its first prompts.
        """
        counts: Counter[MicroBatch] = Counter()
        rows = list(self.lengths) * -(-STEPS * batch // len(self.lengths))
        for start in range(0, STEPS * batch, batch):
            own = [rows[start + i] for i in range(batch) if gets_own(start + i, share)]
            images = sum(row.image for row in own) / tokens
            in_front = sorted(length for row in own for length in row.prompts)
            for first in range(0, len(in_front), AT_ONCE):
                of = in_front[first : first + AT_ONCE]
                counts[MicroBatch(len(of), images if first == 0 else 0.0, of[-1], len(of))] += 1
        return counts

    def padded(self, rows: Sequence[RowLengths], on: str, tokens: Sequence[float]) -> MicroBatch:
        """Return one micro-batch of these examples; logits are computed at the positions `on`.

        `tokens`: of an image, or tile, of the student and of the teacher.
        """
        length = max(row.length for row in rows)
        images = sum(row.image for row in rows) / tokens[0]
        positions = max(1, sum(getattr(row, on) for row in rows))
        padding = len(rows) * length - sum(row.length for row in rows)
        theirs = [row.teacher for row in rows if row.teacher is not None]
        teacher = self.padded(theirs, on, tokens[1:]) if theirs else None
        masked = self.independent or padding > 0
        return MicroBatch(len(rows), images, length, positions, masked, self.independent, teacher, padding)


def sample_data(
    spec: DataSet,
    model: KnownModel,
    root: Path,
    scratch: Path,
    teacher: Blueprint | None = None,
    *,
    by_bytes: bool = False,
) -> DataSample | None:
    """Sample the data set as `model` reads it; None where neither it nor published figures of it are at hand.

    `teacher`, `by_bytes`: see `shown_to`. Images are opened where their sizes decide how many tokens they have. The index of
    a large file is written under `root`, if that folder exists; all else, generated examples included, goes to `scratch`.
    Raises UserError for a file that holds no data, and, as training does before its first step, for more unusable examples
    than the data set allows; where the images are not on this machine, as far as the texts show.
    """
    parameters, cache = dict(spec.parameters), root if root.is_dir() else scratch
    named = [*data_files(parameters.get("file")), *data_files(parameters.get(DATASET))]
    rows, check_images = None, True
    if spec.source == "playground":
        rows, check_images, cache = parameters["pictures"], False, scratch
        parameters["pictures"] = min(rows, SAMPLE_SIZE // 4)
    elif named and not any(map(exists, named)):
        return _published(spec, model)  # a plan fetches nothing
    elif parameters.get("images") and not Path(parameters["images"]).is_dir():
        parameters["images"], check_images = str(scratch), False  # texts are enough
    spec = spec.model_copy(update={"parameters": parameters})
    if model.blueprint is None:
        data = registry.resolve("source", spec.source)(cache, **parameters)
        bad_rows = BadRows(data.name, len(data), spec.max_faults)
        bad_rows.check_sample(data.survey.faults, (), 1)
        notes, has_images = [*data.survey.note_lines(), *bad_rows.notes], bool(data.survey.image_mask.any())

        def lengths_of(index: int) -> RowLengths:
            row = data[index]
            learnt = [answer for i, (_, answer) in enumerate(row.exchanges) if i not in row.unlearnt]
            answer, all_text = (count // CHARACTERS for count in (sum(map(len, learnt)), row.size))
            return _truncated(len(row.images), model.image_tokens, all_text - answer, answer, spec.max_length)

    else:
        conversations = open_data(spec, model.blueprint.inputs, cache)
        if teacher is not None:
            conversations = shown_to(conversations, model.blueprint, teacher, by_bytes=by_bytes)
        conversations.inspect(images=check_images)
        data, notes, has_images = conversations.rows, conversations.notes, conversations.has_images
        readers = [of.inputs for of in (model.blueprint, teacher) if of is not None and check_images]
        opens = any(image.text != inputs.usual.text for inputs in readers for image in inputs.prepare(probes()))
        example = conversations.example if opens else conversations.text_example

        def lengths_of(index: int) -> RowLengths:
            return _counted(example(index), len(data[index].images))

    indices = list(range(len(data)))
    random.Random(0).shuffle(indices)
    lengths = []
    for index in indices[:SAMPLE_SIZE]:
        with suppress(Fault):
            lengths.append(lengths_of(index))
    if not lengths:
        problem = f"{data.name}: none of {len(indices[:SAMPLE_SIZE]):,} rows that were looked at can be used"
        raise UserError(problem, hint="; ".join(notes))
    guess = f", a token taken as {CHARACTERS} characters" if model.blueprint is None else ""
    source, independent = f"a sample of {len(lengths)} rows{guess}", data.turns == "independent"
    opened = data if check_images else None  # a part of a set says little
    has = has_images, data.survey.has_pairs
    return DataSample(rows or len(data), tuple(lengths), independent, source, tuple(notes), *has, opened)


def _counted(example: Example, images: int) -> RowLengths:
    batch = collate([example], pad_token=0)
    teacher = next((_counted(of, images) for names, of in example.others.items() if "teacher" in names), None)
    counts = {on: int(batch.predicting(on).sum()) for on in POSITIONS}
    in_front = tuple(map(len, prompts(example)))
    return RowLengths(len(example.input_ids), images, **counts, prompts=in_front, teacher=teacher)


def _truncated(images: int, image_tokens: int, prompt: int, answer: int, max_length: int | None) -> RowLengths:
    image = images * image_tokens
    length = min(image + prompt + answer, max_length or ASSUMED_MAX_LENGTH)
    answer = max(0, min(answer, length - image - prompt))
    return RowLengths(length, images, image, answer, max(0, length - image - 1), length - 1, (length - answer,))


def _published(spec: DataSet, model: KnownModel) -> DataSample | None:
    facts = published()["files"].get(Path(str(spec.parameters.get("file"))).name)
    if facts is None:
        return None
    lengths = [
        _truncated(kind["pictured"], model.image_tokens, kind["prompt"], kind["answer"], spec.max_length)
        for kind in facts["kinds"]
        for _ in range(round(kind["share"] * SAMPLE_SIZE))
    ]
    random.Random(0).shuffle(lengths)
    rows = min(spec.parameters.get("limit") or facts["rows"], facts["rows"])
    independent = spec.parameters.get("turns") == "independent"
    return DataSample(rows, tuple(lengths), independent, "an assumption, as the file is not here")
