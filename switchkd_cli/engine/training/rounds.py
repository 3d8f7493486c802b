"""The rows that a stage visits: all in one order, or round by round as its mixer decides; what a mixer reads of rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.data.conversation import Examples, Mixture, Variants
from switchkd_cli.engine.training.data_loader import grouped_order, lengths_and_images, mixed_order, visit_order
from switchkd_cli.engine.training.figures import Figure, measure
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.recipe.schema import Stage

Read = Callable[[Examples | Variants, Sequence[int]], Mapping[str, Tensor]]
"""From n rows to what mixers read of them, by name: sums over the answers' tokens, [n] or [n, W], and their number, `tokens`."""

OF_ROUNDS = ("tokens", "weights", "count")  # what a rule may read that is no figure


@dataclass
class RoundState:
    """What the next rows follow from, in addition to the seed: tensors and plain values."""

    visited: Tensor  # [rows of the data] bool
    weights: list[float]  # of the data sets
    sets: list[list[float]]  # of each set: its examples so far, and how many more these are than by its weights
    drawn: int = 0  # candidates so far
    first: int = 0  # the step that the round begins at
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # of the round


class Rounds:
    """Which rows a stage visits: those that are `left` of a round, and with a mixer `draw` for the next one.

    They are a function of the seed, of `state` and of what the mixer reads: no split into processes changes them, except
    where rounding decides between two rows.
    """

    def __init__(self, stage: Stage, data: Examples, steps: int, seed: int) -> None:
        self.stage, self.data, self.steps, self.seed = stage, data, steps, seed
        self.examples: Examples | Variants = data
        """What the rows are numbers of."""
        shares = data.shares if isinstance(data, Mixture) else [1.0]
        self.state = RoundState(torch.zeros(len(data), dtype=torch.bool), shares, [[0, 0.0] for _ in shares])
        if (mixer := stage.mixer) is None:
            self.state.rows = torch.tensor(visit_order(stage, data, steps * stage.batch, seed))
            return
        self.mixer, self.rule = mixer, registry.resolve("mixer", mixer.by)
        self.signature = registry.signature("mixer", mixer.by)
        if mixer.variants > 1:
            self.examples = Variants(data, mixer.strength, seed)
        ungrouped = stage.model_copy(update={"group_by": None})
        self.plain = torch.tensor(visit_order(ungrouped, data, steps * stage.batch * mixer.candidates, seed))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values; nothing without a mixer."""
        return {} if self.stage.mixer is None else {"rounds": dict(vars(self.state))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.stage.mixer is not None:
            self.state = RoundState(**state["rounds"])

    def left(self, step: int) -> list[int]:
        """Return the rows of the current round that are left after `step` steps of the stage."""
        return self.state.rows[(step - self.state.first) * self.stage.batch :].tolist()

    def draw(self, step: int, read: Read) -> dict[str, float]:
        """Decide the rows of the round that begins after `step` steps, and return what there is to log about it."""
        count = self.stage.batch * min(self.mixer.steps_of_round(self.steps), self.steps - step)
        seed, state = self.seed + (step << 32), self.state
        rows, figures = self._by_weights(count, read) if self.signature.of_sets else self._chosen(count, seed, read)
        if self.stage.group_by:
            sizes, image_mask = (of[rows.numpy() % len(self.data)] for of in lengths_and_images(self.data))
            rows = rows[grouped_order(sizes, image_mask, self.stage.batch, count, seed, range(count))]
        numbers = rows % len(self.data)
        figures["again"] = state.visited[numbers].double().mean().item()
        state.visited[numbers] = True
        state.first, state.rows = step, rows
        return figures | {"never": int((~state.visited).sum())}

    def _ask(self, sums: Mapping[str, Tensor], **more: Any) -> Tensor:
        """Return what the rule says for these sums of rows or of data sets."""
        given = more | {name: of / sums["tokens"].view(-1, *[1] * (of.dim() - 1)) for name, of in sums.items()}
        return self.rule(*(given[name] for name in self.signature.positional), **self.mixer.parameters)

    def _by_weights(self, count: int, read: Read) -> tuple[Tensor, dict[str, float]]:
        """Return rows of the data sets by new weights, which follow from held-out rows of each."""
        data, state = self.data, self.state
        assert isinstance(data, Mixture) and data.held_out is not None
        sums, sizes = read(data.held_out, range(len(data.held_out))), [len(part) for part in data.held_out.parts]
        of_sets = {name: torch.stack([part.sum(0) for part in of.split(sizes)]) for name, of in sums.items()}
        state.weights = self._ask(of_sets, weights=torch.tensor(state.weights, dtype=torch.float64)).tolist()
        rows = mixed_order([len(part) for part in data.parts], state.weights, count, self.seed, state.sets)
        taken = np.bincount(np.searchsorted(data.cumulative_sizes, rows, side="right"), minlength=len(state.sets))
        each = zip(state.sets, taken.tolist(), state.weights, strict=True)
        state.sets = [[had + new, ahead + new - weight * count] for (had, ahead), new, weight in each]
        weights = {f"weight/{name}": of for name, of in zip(self.stage.trained_on, state.weights, strict=True)}
        return torch.tensor(rows), {"scored": sum(sizes), **weights}

    def _chosen(self, count: int, seed: int, read: Read) -> tuple[Tensor, dict[str, float]]:
        """Return the best of the next candidates, and of the round before where its rows may come back."""
        mixer, state, size = self.mixer, self.state, len(self.data)
        drawn = state.drawn + count * mixer.candidates
        pool = self.plain[state.drawn : drawn]
        if mixer.again:
            pool = torch.cat([pool, state.rows % size])
            pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))]
        pool = torch.tensor(list(dict.fromkeys(pool.tolist())))
        rows = pool[:, None] + size * torch.arange(mixer.variants)
        sums = read(self.examples, rows.flatten().tolist())
        scores = self._ask(sums, count=min(count, len(pool))).view(rows.shape)
        best, variant = scores.max(1)
        ranked = best.sort(descending=True, stable=True).indices
        # in the plain order; no row twice, except where all candidates are fewer than the round has rows
        chosen = ranked[torch.arange(count) % len(ranked)].sort().values
        state.drawn = drawn  # only now: a stop signal may have ended the reading, and the state is saved as it is
        figures = {"scored": rows.numel(), "score": best[chosen].mean().item(), "score/all": scores.mean().item()}
        return rows[chosen, variant[chosen]], figures


def scored_rows(stage: Stage, steps: int) -> int:
    """Return the most rows that a stage's mixer reads in `steps` steps, to plan with."""
    if (mixer := stage.mixer) is None:
        return 0
    if registry.signature("mixer", mixer.by).of_sets:
        return mixer.rows * len(stage.trained_on) * -(-steps // mixer.steps_of_round(steps))
    return steps * stage.batch * mixer.variants * (mixer.candidates + mixer.again)


def row_sums(trainer: Trainer, names: Iterable[str], batch: Batch) -> dict[str, Tensor]:
    """Return what mixers read of a batch's examples, by name: see `Read`. The weights are as they are."""
    replica, keep = trainer.replica, batch.predicting_in_all("answer")
    figures = [_figure(name) for name in names if name not in OF_ROUNDS]
    found = measure(figures, replica, batch, keep, replica.heads)
    row = batch.predicting("answer").nonzero()[:, 0]
    member = (row == torch.arange(len(keep), device=row.device)[:, None]).double()
    sums = {name: member @ values.double() for name, values in found.items()}  # such a product adds up in one order
    return {name: of.cpu() for name, of in {"tokens": member.sum(1), **sums}.items()}


def _figure(argument: str) -> Figure:
    """Return the figure that a rule's argument names: `student_loss`, of a path, or `divergence`, of student and teacher."""
    path, _, name = argument.rpartition("_")
    return Figure(name=argument, loss=name, of=path or "student")
