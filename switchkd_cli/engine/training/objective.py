"""The objective: a recipe's terms over what the paths output (paper Eq. 1 is three of them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch, row_selector
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.paths import output_name
from switchkd_cli.engine.per_image import PerImage, loss_per_image
from switchkd_cli.recipe.schema import Term

IMAGES = "images"

OnLogits = Callable[[Mapping[str, Tensor], Batch, Tensor], None]
"""Called with logits [n, V] by path, the batch, and a mask [B, T] of the n positions that they are of."""

OnValues = Callable[[str, Tensor, Tensor], None]
"""Called with a term's name, its value at each of n positions or images, [n], and the row of the batch of each, [n]."""


@dataclass(frozen=True)
class Normalizers:
    """What the terms of one optimiser step are divided by: its number of positions of each kind and of images.

    `progress` is the share of the stage's steps that were taken before this one, in [0, 1).
    """

    counts: Mapping[str, Tensor]
    progress: float = 0.0


class LossInputs(NamedTuple):
    """What the objective of a micro-batch is computed from."""

    outputs: Mapping[str, PerImage]
    """What the paths gave, by name: of logits either these, or the hidden states that `heads` turns into them."""
    heads: Heads | None
    batch: Batch
    keep: Tensor
    """[B, T] bool: the N positions of the logits and hidden states [N, ...]."""
    normalizers: Normalizers


class Objective:
    """Terms as data: each compares one path (`of`) with labels or another path (`to`), at some positions (`on`).

    The names of a loss's positional arguments say what its term reads (`registry.Signature.reads`); the `outputs` that
    the paths have to give follow from them.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        self._losses = {t.name: registry.resolve("loss", t.loss) for t in terms}
        self._signatures = {t.name: registry.signature("loss", t.loss) for t in terms}
        reads = [(t, side, kind) for t in terms for side, kind in self._signatures[t.name].reads]
        self.outputs = frozenset(_output(term, side, kind) for term, side, kind in reads)
        self.on = tuple(dict.fromkeys(t.on for t in terms if not self._signatures[t.name].of_images))

    def reads_logits(self, term: Term) -> bool:
        """Whether a term reads logits, not only what lies in front of them."""
        return any(kind == "logits" for _, kind in self._signatures[term.name].reads)

    def counted(self, term: Term) -> str:
        """Return what a term is a mean over, as the normalizers name it: a kind of positions, or images."""
        return IMAGES if self._signatures[term.name].of_images else term.on

    @property
    def compares_positions(self) -> bool:
        """Whether some loss compares positions of an example with one another."""
        return any("rows" in signature.positional for signature in self._signatures.values())

    def keep(self, batch: Batch) -> Tensor:
        """Return a mask [B, T] of every position that some term reads."""
        return torch.stack([torch.zeros_like(batch.image), *(batch.predicting(on) for on in self.on)]).any(0)

    def normalizers(
        self,
        batches: Sequence[Batch],
        progress: float = 0.0,
        sum_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> Normalizers:
        """Count over all micro-batches of a step, so that no split into micro-batches or processes changes the loss."""
        counts = [torch.stack([b.predicting(on).sum() for b in batches]).sum() for on in self.on]
        images = sum(len(b.image_rows) for b in batches)
        counts.append(torch.tensor(images, device=batches[0].image.device))
        together = sum_over_processes(torch.stack(counts))
        return Normalizers(dict(zip((*self.on, IMAGES), together, strict=True)), progress)

    def __call__(self, inputs: LossInputs, on_values: OnValues | None = None) -> dict[str, Tensor]:
        """Return each term's part of the step's loss, unweighted: its sum over positions or images / the step's count."""
        parts = {}
        for term in self.terms:
            values, rows = self._values(term, inputs)
            if on_values is not None:
                on_values(term.name, values, rows)
            parts[term.name] = values.sum() / inputs.normalizers.counts[self.counted(term)].clamp(min=1)
        return parts

    def _values(self, term: Term, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Return a term at each position or image, [N], and the row of the batch that each belongs to, [N]."""
        outputs, _, batch, keep, normalizers = inputs
        # mostly all of [N, V] itself, not a copy of it for each term
        signature, select = self._signatures[term.name], row_selector(batch.predicting(term.on)[keep])
        rows = select(keep.nonzero()[:, 0])
        given: dict[str, Any] = {"targets": select(batch.targets[keep]), "rows": rows, "progress": normalizers.progress}
        for side, kind in signature.reads:
            output = outputs[_output(term, side, kind)]
            of_positions = kind in registry.OF_POSITIONS
            given[f"{side}_{kind}"] = select(cast(Tensor, output)) if of_positions else output
        positional = (given[name] for name in signature.positional)
        loss = self._losses[term.name]
        if signature.of_images:
            return loss_per_image(loss, *positional, **term.parameters), batch.image_rows
        return loss(*positional, **term.parameters), rows

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms, which is minimised."""
        return sum((term.weight * parts[term.name] for term in self.terms), torch.zeros(()))


def _output(term: Term, side: str, kind: str) -> str:
    """Return the name of an output: a loss's student is the term's `of`, its teacher the term's `to`."""
    return output_name(term.of if side == "student" else term.to, kind)
