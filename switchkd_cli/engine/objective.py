"""The objective: a recipe's terms over the paths' logits (paper Eq. 1 is three of them)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch
from switchkd_cli.recipe.schema import Term

LABELS = "labels"


@dataclass(frozen=True)
class Tally:
    """How many positions of each kind (answer, text, all) one optimiser step holds: the terms' normaliser."""

    counts: Mapping[str, Tensor]

    def __getitem__(self, on: str) -> Tensor:
        return self.counts[on].clamp(min=1)


class Objective:
    """Terms as data: each compares one path (`of`) with labels or another path (`to`) at some positions (`on`)."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        self._losses = {t.name: registry.resolve("loss", t.loss) for t in terms}
        self.paths = frozenset().union(*(t.paths for t in terms))
        self.on = tuple(dict.fromkeys(t.on for t in terms))

    def keep(self, batch: Batch) -> Tensor:
        """[B, T] bool: every position that some term looks at."""
        return torch.stack([batch.predicting(on) for on in self.on]).any(0)

    def tally(self, batches: Sequence[Batch]) -> Tally:
        """Counts over all micro-batches of a step, so that no split changes the loss."""
        return Tally({on: torch.stack([b.predicting(on).sum() for b in batches]).sum() for on in self.on})

    def __call__(
        self, logits: Mapping[str, Tensor], batch: Batch, keep: Tensor, tally: Tally
    ) -> dict[str, Tensor]:
        """Each term's share of the step's loss, unweighted: its sum over positions / the step's count."""
        parts = {}
        for term in self.terms:
            chosen = batch.predicting(term.on)[keep]  # [N]
            reference = batch.targets[keep] if term.to == LABELS else logits[term.to]
            values = self._losses[term.name](reference[chosen], logits[term.of][chosen], **term.parameters)
            parts[term.name] = values.sum() / tally[term.on]
        return parts

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum that is minimised."""
        return torch.stack([term.weight * parts[term.name] for term in self.terms]).sum()
