"""The validation of a stage: its objective, agreement with the teacher and exact match, on examples that it does not train on."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from posixpath import normpath
from typing import Any

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch, Unusable, collate
from switchkd_cli.engine.data.conversation import Conversations, Examples, Mixture
from switchkd_cli.engine.data.rows import Fault, Rows
from switchkd_cli.engine.training.checkpointing import random_state, set_random_state
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.data_loader import order, rows_of_process
from switchkd_cli.engine.training.figures import Figure
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import HIGHER, VALIDATION, Stage, Validation
from switchkd_cli.report.grouping import grouped

LARGEST = 0.1  # share of a data set that is held out for a mixer
EXACT_MATCH = f"{VALIDATION}exact_match"
SEED = 0  # draws the examples, whatever the seed of the run

Sums = Mapping[str, tuple[float, int]]
"""By term: its sum over positions, images or answers, and their number."""


def split(stage: Stage, data: Mapping[str, Conversations]) -> tuple[Examples, Conversations | None]:
    """Return the examples that a stage trains on, and those that it is validated on.

    Raises UserError where a `share` leaves nothing to train on, or has nothing to draw from.
    """
    train, spec = data[stage.trained_on[0]], stage.validation
    whole: Examples = train
    if not isinstance(stage.data, str):
        parts, weights = [data[name] for name in stage.trained_on], [portion.weight for portion in stage.data]
        whole = Mixture(parts, weights)
        if stage.mixer is not None and registry.signature("mixer", stage.mixer.by).of_sets:
            rows, place = stage.mixer.rows, f"stages.{stage.name}.mixer.rows"
            both = [_hold_out(part, min(rows / len(part), LARGEST), rows, f"{place}: {rows} of") for part in parts]
            whole, held_out = (Mixture(of, weights) for of in zip(*both, strict=True))
            whole.held_out = held_out
    if spec is None:
        return whole, None
    if spec.data is not None:
        other = data[spec.data]
        return whole, other.part(order(len(other), min(len(other), spec.rows), SEED))
    share = spec.share or 0.0
    return _hold_out(train, share, spec.rows, f"stages.{stage.name}.validation.share: {share:g} of")


def _hold_out(data: Conversations, share: float, rows: int, which: str) -> tuple[Conversations, Conversations]:
    """Return the examples without a `share` of them, and at most `rows` of that. Raises UserError where one is empty."""
    drawn = draw_by_image(data.rows, share)
    held_out = set(drawn)
    rest = [row for row in range(len(data)) if row not in held_out]
    if not (drawn and rest):
        problem = f"{which} {data.rows.name} leaves no row to {'train' if drawn else 'validate'} on"
        raise UserError(problem, hint="rows of one image stay together: take less of it, or another data set")
    return data.part(rest), data.part(drawn[:rows])


@lru_cache(maxsize=4)  # later stages and the scoring draw the same share again
def draw_by_image(rows: Rows, share: float) -> list[int]:
    """Return the numbers of a `share` of the rows, in the order drawn. Rows of one image, by its path or bytes, stay together.

    Every row is read once; a second call with the same rows and share reads none. Those that can't be read are never drawn.
    """
    images = [_images(rows, number) for number in range(len(rows))]
    groups = grouped((image, number) for number, of_row in enumerate(images) for image in of_row)
    drawn: dict[int, None] = {}
    for number in order(len(rows), len(rows), SEED):
        if len(drawn) >= share * len(rows):
            break
        reached = [number]
        while reached:  # rows with an image of those that are drawn
            found = [row for image in images[reached.pop()] for row in groups.pop(image, ())]
            drawn |= dict.fromkeys(found)
            reached += found
    return list(drawn)


def _images(rows: Rows, number: int) -> list[str | bytes | int]:
    """Return what a row has in common with others of its images: without an image its number, unusable nothing."""
    try:
        found = rows[number].images
    except Fault:
        return []
    return [normpath(i) if isinstance(i, str) else hashlib.blake2b(i).digest() for i in found] or [number]


class Validator:
    """A stage's validations: their figures, the best of the monitored one, and whether the stage should end early."""

    def __init__(self, spec: Validation, data: Conversations, trainer: Trainer) -> None:
        self.spec, self.data, self.trainer = spec, data, trainer
        alike = trainer.stage.needs_teacher and trainer.paths.tokens is None
        agreement = [Figure(name=f"{VALIDATION}agreement", loss="agreement")] if alike else []
        terms = [*trainer.objective.terms, *agreement, Figure(name=EXACT_MATCH, loss="right")]
        self.objective = Objective(terms, trainer.objective.tokens, trainer.objective.means)
        self.loss = ChunkedObjective(self.objective, dense=trainer.replica.heads is None)
        self.best = math.inf  # of the monitored figure, negative where the highest is best
        self.waited = 0  # validations since then

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]

    @property
    def over(self) -> bool:
        """Whether `patience` validations in a row were no better than the best before them."""
        return self.spec.patience is not None and self.waited >= self.spec.patience

    def figures(self, filler: Batch) -> dict[str, float]:
        """Return the figures of the weights as they are, and note whether the monitored one is the best so far.

        `validation/loss` and `validation/loss/<term>` are the objective's means over all examples, in eval mode; of the
        answers' tokens `agreement` is the share where student and teacher predict the same, and `exact_match` the share of
        answers whose tokens are all predicted, each after the true ones: greedy generation would give the same answer.
        What no example has is left out, and agreement where the teacher reads other tokens. They are those of one process, whatever the number of processes, to rounding.

        Every process must call this; `filler` is any batch, for one that has no example left where others have. Raises
        UserError for too many unusable examples, or where none has the monitored figure.
        """
        trainer, processes, state = self.trainer, self.trainer.processes, random_state()
        trainer.replica.paths.eval()
        unusable: list[Unusable] = []
        with torch.no_grad():
            mine = [self._sums(*each) for each in self._batches(filler, unusable)]
        trainer.replica.paths.train()
        set_random_state(state)
        each, of_unusable = zip(*processes.gather((mine, unusable)), strict=True)
        self.data.bad_rows.add(row for rows in of_unusable for row in rows)
        found = self._means([sums for process in each for sums in process])
        if (monitor := self.spec.monitor) not in found:
            where = f"stages.{trainer.stage.name}.validation"
            raise UserError(f"{where}: none of its {len(self.data)} examples has what {monitor} is measured on")
        value = found[monitor] * (-1 if monitor in HIGHER else 1)
        self.waited = 0 if value < self.best else self.waited + 1
        self.best = min(self.best, value)
        return found

    def _batches(self, filler: Batch, unusable: list[Unusable]) -> Iterator[tuple[Batch, bool]]:
        """Yield this process's batches, and whether each counts; as many in every process, as they compute together."""
        count, size = self.trainer.processes.count, self.trainer.micro_batch
        mine = rows_of_process(self.data.chosen, size, self.trainer.processes.rank, count)
        pad_token = self.trainer.paths.student.inputs.tokenizer.pad_token_id
        for first in range(0, math.ceil(len(self.data) / (size * count)) * size, size):
            examples = []
            for row in mine[first : first + size]:
                try:
                    examples.append(self.data.example(row))
                except Fault as fault:
                    unusable.append(fault.at(row))
            yield (collate(examples, pad_token=pad_token), True) if examples else (filler, False)

    def _sums(self, batch: Batch, counts: bool) -> Sums:
        """Return a batch's part of each figure; nothing of one that doesn't count (`counts`)."""
        trainer, objective, replica = self.trainer, self.objective, self.trainer.replica
        batch = batch.to(replica.device)
        keep, answers = objective.keep(batch), batch.predicting("answer")
        right: list[Tensor] = []

        def note(name: str, values: Tensor, rows: Tensor, weights: Tensor | None) -> None:
            if name == EXACT_MATCH:
                right.append(values.bool())

        outputs = replica(batch, self.loss.outputs, keep)
        number = objective.counts([batch])
        by_one, progress, states = dict.fromkeys(number, torch.ones(())), trainer.progress, trainer.states
        kept = states.weights(progress), states.of_losses
        inputs = LossInputs(outputs, replica.heads, batch, keep, by_one, progress, *kept)
        _, parts = self.loss(inputs, on_values=note)
        if not counts:
            return {}
        sums = {term.name: (parts[term.name].item(), int(number[objective.counted(term)])) for term in objective.terms}
        return {**sums, EXACT_MATCH: whole_answers(answers, answers.masked_scatter(answers, torch.cat(right)))}

    def _means(self, batches: Sequence[Sums]) -> dict[str, float]:
        """Return the figures over all batches, in whatever order they come."""
        means = {}
        for name in dict.fromkeys(name for sums in batches for name in sums):
            values, numbers = zip(*(sums[name] for sums in batches if name in sums), strict=True)
            if number := sum(numbers):
                means[name] = math.fsum(values) / number if all(map(math.isfinite, values)) else math.nan
        states, progress = self.trainer.states, self.trainer.progress
        losses = {name: of for name, of in means.items() if not name.startswith(VALIDATION)}
        of_terms = {f"{VALIDATION}loss/{name}": means.pop(name) for name in losses}
        total = {f"{VALIDATION}loss": states.total(losses, states.weights(progress))} if losses else {}
        return total | of_terms | means


def whole_answers(answers: Tensor, right: Tensor) -> tuple[int, int]:
    """Return how many answers are right in every token, and how many there are.

    `answers` [B, T] marks the positions that predict an answer's tokens, `right` [B, T] those whose prediction is true. An
    answer is a row of neighbours: something else lies between two of them. Of a truncated answer only what is left counts.
    """
    begins = answers.clone()
    begins[:, 1:] &= ~answers[:, :-1]
    number = begins.flatten().cumsum(0).view_as(answers)
    count = int(begins.sum())
    return count - number[answers & ~right].unique().numel(), count
