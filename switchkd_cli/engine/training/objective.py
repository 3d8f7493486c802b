"""The objective: a recipe's terms over what the paths give (paper Eq. 1 is three of them)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch, only
from switchkd_cli.engine.paths import reading
from switchkd_cli.engine.per_image import loss_per_image
from switchkd_cli.recipe.schema import Term

PICTURE = "picture"

Look = Callable[[Mapping[str, Tensor], Batch, Tensor], None]
"""Is shown logits [n, V] by path, the batch, and the n positions [B, T] that they are of."""


@dataclass(frozen=True)
class Tally:
    """Of one optimiser step: positions of each kind (answer, ...) and pictures, the terms' normalisers, and when.

    `progress` is the share of the stage's steps that were taken before it, in [0, 1).
    """

    counts: Mapping[str, Tensor]
    progress: float = 0.0

    def __getitem__(self, counted: str) -> Tensor:
        return self.counts[counted].clamp(min=1)


class Objective:
    """Terms as data: each compares one path (`of`) with labels or another path (`to`), at some positions (`on`).

    What a term's loss reads is told by the names of its positional arguments (`registry.Signature.reads`); the
    readings that the paths have to give are derived from them.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        self._losses = {t.name: registry.resolve("loss", t.loss) for t in terms}
        self._reads = {t.name: registry.signature("loss", t.loss) for t in terms}
        sides = [(t, side, kind) for t in terms for side, kind in self._reads[t.name].reads]
        self.readings = frozenset(_reading(term, side, kind) for term, side, kind in sides)
        self.on = tuple(dict.fromkeys(t.on for t in terms if not self._reads[t.name].of_images))

    def reads_logits(self, term: Term) -> bool:
        """Whether a term looks at what is said, not only at what lies in front of it."""
        return any(kind == "logits" for _, kind in self._reads[term.name].reads)

    def counted(self, term: Term) -> str:
        """What a term is a mean over: its kind of positions, or pictures. A tally counts them."""
        return PICTURE if self._reads[term.name].of_images else term.on

    @property
    def compares_positions(self) -> bool:
        """Whether some loss compares positions of a row with one another."""
        return any("rows" in reads.positional for reads in self._reads.values())

    def keep(self, batch: Batch) -> Tensor:
        """[B, T] bool: every position whose logits some term looks at."""
        return torch.stack([torch.zeros_like(batch.image), *(batch.predicting(on) for on in self.on)]).any(0)

    def tally(
        self,
        batches: Sequence[Batch],
        progress: float = 0.0,
        over_all: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> Tally:
        """Counts over all micro-batches of a step, so that no split changes the loss.

        `over_all` adds up what several processes counted.
        """
        counts = [torch.stack([b.predicting(on).sum() for b in batches]).sum() for on in self.on]
        pictures = torch.tensor(sum(len(_rows_of_images(b)) for b in batches), device=batches[0].image.device)
        together = over_all(torch.stack([*counts, pictures]))
        return Tally(dict(zip((*self.on, PICTURE), together, strict=True)), progress)

    def __call__(
        self, readings: Mapping[str, Tensor], batch: Batch, keep: Tensor, tally: Tally
    ) -> dict[str, Tensor]:
        """Each term's share of the step's loss, unweighted: its sum over positions or pictures / the step's count."""
        parts = {}
        for term in self.terms:
            values, _ = self._values(term, readings, batch, keep, tally)
            parts[term.name] = values.sum() / tally[self.counted(term)]
        return parts

    @torch.no_grad()
    def not_finite(
        self, terms: Sequence[str], readings: Mapping[str, Tensor], batch: Batch, keep: Tensor, tally: Tally
    ) -> dict[str, set[str]]:
        """By term, the ids of the rows of the batch with a value that is no number."""
        found = {}
        for term in (term for term in self.terms if term.name in terms):
            values, rows = self._values(term, readings, batch, keep, tally)
            found[term.name] = {batch.ids[row] for row in rows[~values.isfinite()].unique().tolist()}
        return found

    def _values(
        self, term: Term, readings: Mapping[str, Tensor], batch: Batch, keep: Tensor, tally: Tally
    ) -> tuple[Tensor, Tensor]:
        """A term at each position or picture, [N], and the row of the batch that each belongs to, [N]."""
        # mostly all of [N, V] as it is, not a copy of it for each term
        reads, at_chosen = self._reads[term.name], only(batch.predicting(term.on)[keep])
        rows = at_chosen(keep.nonzero()[:, 0])
        beside = {"targets": at_chosen(batch.targets[keep]), "rows": rows, "progress": tally.progress}
        for side, kind in reads.reads:
            given = readings[_reading(term, side, kind)]
            beside[f"{side}_{kind}"] = at_chosen(given) if kind in registry.OF_POSITIONS else given
        arguments = (beside[name] for name in reads.positional)
        loss = self._losses[term.name]
        if reads.of_images:
            return loss_per_image(loss, *arguments, **term.parameters), _rows_of_images(batch)
        return loss(*arguments, **term.parameters), rows

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum that is minimised."""
        return sum(term.weight * parts[term.name] for term in self.terms)


def _rows_of_images(batch: Batch) -> Tensor:
    """Which row of the batch each image belongs to, [P]."""
    return batch.image.any(1).nonzero()[:, 0]


def _reading(term: Term, side: str, kind: str) -> str:
    """A loss's student is the term's `of`, its teacher the term's `to`."""
    return reading(term.of if side == "student" else term.to, kind)
