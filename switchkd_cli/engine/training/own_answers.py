"""Own answers (on-policy): some examples of a step get the student's own answers in place of the data's.

An example's number in the stage's order says whether it gets them, and each answer is drawn from numbers of its own, so no
split into micro-batches or processes changes what is sampled, and a resumed run samples the same. The loss takes them as
they are: sampling has no gradient.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from switchkd_cli.engine.batch import IGNORE, Batch, Example, ImageInput, collate, positions
from switchkd_cli.engine.data.conversation import Examples
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.training.trainer import Trainer

AT_ONCE = 64  # answers that are sampled together: without a gradient they take less memory than a micro-batch


def gets_own(number: int, share: float) -> bool:
    """Whether the example of this number, in the order of the stage, gets own answers: as evenly as the share allows."""
    return math.floor((number + 1) * share) > math.floor(number * share)


def answer_spans(labels: Tensor) -> list[tuple[int, int]]:
    """Return the first token of each answer in labels [T], and the one behind its last."""
    edges = torch.diff(pad((labels != IGNORE).int(), (1, 1))).nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def prompts(example: Example) -> Iterator[Tensor]:
    """Yield the tokens in front of each answer, without the turns that it doesn't see."""
    for begin, _ in answer_spans(example.labels):
        turn = example.turn[:begin]
        yield example.input_ids[:begin][(turn == 0) | (turn == example.turn[begin])]


def with_answers(example: Example, answers: Sequence[Tensor], end: int, inputs: InputProcessor) -> Example:
    """Return the example with other tokens as its first answers, as a model of these `inputs` reads it.

    Behind one that was cut before its `end` token the given answer's stays, but is not learnt. Of a pair of own answers none
    is preferred.
    """
    parts, at = [], 0
    for (begin, stop), answer in zip(answer_spans(example.labels), answers, strict=False):
        cut = answer[-1] != end and example.input_ids[stop - 1] == end
        parts.append((example.input_ids[at:begin], example.labels[at:begin], example.turn[at:begin]))
        parts.append((answer, answer, example.turn[begin].expand(len(answer))))
        at = stop - 1 if cut else stop
        parts.append((example.input_ids[at:stop], torch.full((stop - at,), IGNORE), example.turn[at:stop]))
        at = stop
    parts.append((example.input_ids[at:], example.labels[at:], example.turn[at:]))
    ids, labels, turn = (torch.cat(of) for of in zip(*parts, strict=True))
    position = inputs.position(ids, turn, example.images)
    position = positions(turn[None])[0] if position is None else position
    image = ids == inputs.image_token
    example = replace(example, own=True, paired=False)
    return replace(example, input_ids=ids, labels=labels, turn=turn, image=image, position=position)


class Sampled(LogitsProcessor):
    """Leaves one token in each row of logits: sampled by numbers [B, steps] in [0, 1), or at temperature 0 the likeliest.

    The token is the first whose cumulative probability is above the row's number. Those of `never` are not taken.
    """

    def __init__(self, numbers: Tensor, prompt: int, temperature: float, never: Tensor) -> None:
        self.numbers, self.prompt, self.temperature, self.never = numbers, prompt, temperature, never

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().index_fill(1, self.never, -math.inf)
        if not self.temperature:
            return scores
        reached = (scores / self.temperature).softmax(-1).cumsum(-1)
        drawn = self.numbers[:, input_ids.shape[1] - self.prompt, None] * reached[:, -1:]
        taken = torch.searchsorted(reached, drawn, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -math.inf).scatter(1, taken, 0.0)


class Asked(NamedTuple):
    """An example that gets own answers: its images with their visual tokens, and the answers so far, by their numbers."""

    example: Example
    images: Sequence[tuple[Tensor, ImageInput]]
    answers: dict[int, Tensor]


class OwnAnswers:
    """Gives a stage's examples their own answers.

    The answers of a chained conversation come one after another, each behind the student's own earlier ones; independent
    ones all at once. An example that would be longer than `max_length` or a model's positions keeps the given answers.
    """

    def __init__(self, trainer: Trainer, data: Examples, seed: int) -> None:
        assert trainer.stage.answers is not None
        self.trainer, self.seed, self.settings = trainer, seed, trainer.stage.answers
        student, readers = trainer.paths.student, [reader for part in data.parts for reader in part.others.items()]
        self.inputs = student.inputs
        self.readers = {names: reader.image_inputs for names, reader in readers}
        tokenizer = self.inputs.tokenizer
        self.end = tokenizer.eos_token_id if data.end is None else tokenizer.convert_tokens_to_ids(data.end)
        unreadable = range(trainer.paths.vocabulary, student.head.shape[0])  # the teacher has no such tokens
        visual = [inputs.image_token for inputs in (self.inputs, *self.readers.values())]
        self.never = torch.tensor([*visual, *unreadable])
        self.seconds = 0.0  # that the last step's answers took
        readings = [*data.parts, *(reader for _, reader in readers)]
        limits = [limit for of in readings for limit in (of.max_length, *of.positions.values()) if limit is not None]
        self.longest = min(limits, default=math.inf)

    def __call__(self, group: Sequence[Batch], step: int) -> tuple[list[Batch], dict[str, float]]:
        """Return this process's micro-batches of a step (from 0) with own answers, and figures over all processes:

        `own/share` of the examples that got them, `own/length`, the mean of their tokens, and `own/cut`, the share of answers
        that `max_tokens` cut. Every process must call this.
        """
        began, trainer = time.monotonic(), self.trainer
        device, bf16 = trainer.replica.device, trainer.precision == "bf16"
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        with torch.no_grad(), trainer.replica.complete_student() as student, autocast:
            student.eval()
            asked = [self._asked(student, *each) for each in zip(group, self._own_rows(group, step), strict=True)]
            every = [of for each in asked for of in each.values()]
            while due := [(of, *each) for of in every for each in self._due(of)]:
                due.sort(key=lambda each: len(each[2]))  # little padding
                for first in range(0, len(due), AT_ONCE):
                    self._sample(student, due[first : first + AT_ONCE], step)
            student.train()
        made = [self._collated(batch, own) if own else batch for batch, own in zip(group, asked, strict=True)]
        answers = [answer for of in every for answer in of.answers.values()]
        cut = sum(int(answer[-1]) != self.end for answer in answers)
        mine = sum(int(batch.own.sum()) for batch in made), len(answers), sum(map(len, answers)), cut
        self.seconds = time.monotonic() - began
        own, count, tokens, cut = map(sum, zip(*trainer.processes.gather(mine), strict=True))
        of_each = {"own/length": tokens / count, "own/cut": cut / count} if count else {}
        return made, {"own/share": own / trainer.stage.batch, **of_each}

    def _own_rows(self, group: Sequence[Batch], step: int) -> Iterator[list[int]]:
        """Yield the rows of each micro-batch that get own answers."""
        processes, size = self.trainer.processes, self.trainer.micro_batch
        for number, batch in enumerate(group):
            place = number * processes.count + processes.rank  # see `rows_of_process`
            first = step * self.trainer.stage.batch + place * size
            yield [row for row in range(len(batch.ids)) if gets_own(first + row, self.settings.own)]

    def _asked(self, student: VisionLanguageModel, batch: Batch, rows: Sequence[int]) -> dict[int, Asked]:
        """Return these rows of a micro-batch by number, after a look at their images."""
        examples = list(batch.examples())
        given = [image for row in rows for image in examples[row].images]
        images = [{name: of.to(student.model.device) for name, of in image.items()} for image in given]
        tokens = student.project(student.encode(images), images) if images else ()
        seen = zip(tokens, given, strict=True)
        return {row: Asked(examples[row], list(islice(seen, len(examples[row].images))), {}) for row in rows}

    def _due(self, of: Asked) -> Sequence[tuple[int, Tensor]]:
        """Return the numbers of the answers that can be given now, and their prompts."""
        left = list(enumerate(prompts(self._answered(of))))[len(of.answers) :]
        return left if of.example.turn.any() else left[:1]

    def _sample(self, student: VisionLanguageModel, due: Sequence[tuple[Asked, int, Tensor]], step: int) -> None:
        """Give these answers, of the prompts in one batch."""
        longest, padding, device = len(due[-1][2]), self.inputs.tokenizer.pad_token_id, student.model.device
        ids = torch.stack([pad(prompt, (longest - len(prompt), 0), value=padding) for *_, prompt in due])
        mask = torch.stack([pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for *_, prompt in due])
        numbers = torch.stack([self._numbers(of.example.id, number, step) for of, number, _ in due])
        token = Sampled(numbers.to(device), longest, self.settings.temperature, self.never.to(device))
        shown = [image for of, _, prompt in due for image in self._shown(of, prompt)]
        ends = {"eos_token_id": self.end, "pad_token_id": padding}
        greedy = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=self.settings.max_tokens, **ends)
        how = {"logits_processor": LogitsProcessorList([token])}
        new = student.continued(ids.to(device), mask.to(device), shown, greedy, **how).cpu()
        for (of, number, _), answer in zip(due, new, strict=True):
            ended = (answer == self.end).nonzero().flatten().tolist()
            of.answers[number] = answer[: ended[0] + 1 if ended else None]

    def _shown(self, of: Asked, prompt: Tensor) -> Iterator[tuple[Tensor, ImageInput]]:
        """Yield the images in a prompt: of a chained conversation the later ones may be missing."""
        reached = accumulate(len(tokens) for tokens, _ in of.images)
        count = int((prompt == self.inputs.image_token).sum())
        return (image for image, end in zip(of.images, reached, strict=True) if end <= count)

    def _numbers(self, id: str, answer: int, step: int) -> Tensor:
        """Return the numbers in [0, 1) that draw an answer's tokens."""
        name = repr((self.seed, self.trainer.stage.name, step, id, answer)).encode()
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1
        return torch.rand(self.settings.max_tokens, generator=torch.Generator().manual_seed(seed))

    def _answered(self, of: Asked) -> Example:
        """Return the example with the answers so far, in all its readings."""
        answers, others = [of.answers[number] for number in range(len(of.answers))], of.example.others.items()
        read = {names: with_answers(other, answers, self.end, self.readers[names]) for names, other in others}
        return replace(with_answers(of.example, answers, self.end, self.inputs), others=read)

    def _collated(self, batch: Batch, own: Mapping[int, Asked]) -> Batch:
        """Return the micro-batch with these rows' own answers, of those that fit."""
        examples = list(batch.examples())
        for row, example in ((row, self._answered(of)) for row, of in own.items()):
            readings = [of.turn for of in (example, *example.others.values())]
            examples[row] = example if max(map(len, readings)) <= self.longest else examples[row]
        return collate(examples, pad_token=self.inputs.tokenizer.pad_token_id)
