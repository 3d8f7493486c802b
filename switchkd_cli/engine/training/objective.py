"""The objective: a recipe's terms over what the paths output (paper Eq. 1 is three of them)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch, PerImage, loss_per_image, row_selector
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.losses.focus import BLOCK, weights
from switchkd_cli.engine.losses.ops.positions import single_tokens, span_rows
from switchkd_cli.engine.losses.ops.state import State
from switchkd_cli.engine.paths import output_name
from switchkd_cli.engine.token_map import TokenMap
from switchkd_cli.recipe.schema import PathSpec, Term

IMAGES, SPANS, PAIRS, PREFERENCES = "images", "spans", "pairs", "preferences"

OnLogits = Callable[[Mapping[str, Tensor], Batch, Tensor], None]
"""Called with logits [n, V] by path, the batch, and a mask of the n positions that they are of (`Batch.read_by`)."""

OnValues = Callable[[str, Tensor, Tensor, Tensor | None], None]
"""Called with a term's name, its value at each of n positions or images, [n], the row of the batch of each, [n], and the
weight that a focus gives it, [n]."""


class LossInputs(NamedTuple):
    """What the objective of a micro-batch is computed from."""

    outputs: Mapping[str, PerImage]
    """What the paths gave, by name: of logits either these, or the hidden states that `heads` turns into them."""
    heads: Heads | None
    batch: Batch
    keep: Tensor
    """[B, T] bool: the N positions of the logits and hidden states [N, ...]; see `Batch.read_by`."""
    counts: Mapping[str, Tensor]
    """What the terms are divided by: the number of positions of each kind, and of images, in all of the optimiser step."""
    progress: float = 0.0
    """The share of the stage's steps that were taken before this one, in [0, 1)."""
    weights: Mapping[str, float] = {}
    """The terms' weights in this step, where they vary from step to step."""
    states: Mapping[str, State] = {}
    """The states of losses that keep one, by term."""


class Objective:
    """Terms as data: each compares one path (`of`) with labels or another path (`to`), at some positions (`on`).

    The names of a loss's positional arguments say what its term reads (`registry.Signature.reads`); the `outputs` that
    the paths have to give follow from them.

    With `alignment: bytes` a term compares paths that read tokens of their own. A loss that names spans gets all positions
    of both. Any other gets pairs of positions, where one token on each side is the same one in both vocabularies, and of
    logits the columns that are in both (`tokens`).
    """

    def __init__(
        self, terms: Sequence[Term], tokens: TokenMap | None = None, means: Mapping[str, PathSpec] = {}
    ) -> None:
        self.terms, self.tokens, self.means = tuple(terms), tokens, means
        read = {each for term in terms for of in (term, term.score) if of is not None for each in of.reads}
        made = ((of, kind) for path, kind in read for of in (means[path].mean if path in means else (path,)))
        self.outputs = frozenset(output_name(*each) for each in made)
        self.on = tuple(dict.fromkeys(t.positions for t in terms if not t.signature.of_images))

    def part(self, terms: Sequence[Term]) -> Self:
        """Return the objective of some of its terms."""
        return type(self)(terms, self.tokens, self.means)

    def counted(self, term: Term) -> str:
        """Return what a term is a mean over, as `counts` names it: a kind of positions, images, spans or pairs."""
        signature = term.signature
        if signature.of_images:
            return IMAGES
        if signature.of_preferences:
            return PREFERENCES
        if term.alignment == "bytes":
            return SPANS if signature.of_spans else PAIRS
        return term.positions if term.of == "student" else f"{term.of}'s {term.positions}"

    def keep(self, batch: Batch) -> Tensor:
        """Return a mask [B, T] of every position that some term reads; see `Batch.read_by`."""
        kept = [batch.predicting_in_all(on) for on in self.on]
        return torch.stack(kept or [torch.zeros_like(batch.predicting_in_all("all"))]).any(0)

    def counts(
        self, batches: Sequence[Batch], sum_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts
    ) -> dict[str, Tensor]:
        """Count over all micro-batches of a step, so that no split into micro-batches or processes changes the loss."""
        each = [self._counts(batch) for batch in batches]
        sums = [torch.stack([counts[name] for counts in each]).sum() for name in each[0]]
        return dict(zip(each[0], sum_over_processes(torch.stack(sums)), strict=True))

    def _counts(self, batch: Batch) -> dict[str, Tensor]:
        counted = {self.counted(term): batch.reading(term.of).predicting(term.positions) for term in self.terms}
        counts = {name: chosen.sum() for name, chosen in counted.items()}
        counts[IMAGES] = torch.tensor(len(batch.image_rows), device=batch.image.device)
        counts[PREFERENCES] = batch.predicting("rejected").any(1).sum()
        if any(term.alignment == "bytes" for term in self.terms):
            assert batch.aligned is not None
            spans = batch.predicted_spans[batch.predicting("answer")]  # without those of rejected answers
            counts[SPANS] = spans.new_tensor(spans[spans >= 0].unique().numel())
            counts[PAIRS] = self._pairs(batch, batch.predicting_in_all("answer"))[0].sum()
            counts |= {"tokens": batch.predicting("answer").sum(), "bytes": batch.aligned[:, 1].sum()}
            counts["aligned bytes"] = batch.aligned[:, 0].sum()
        return counts

    def aligned(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the shares of the answers' bytes that lie in spans, and of the student's tokens that are in pairs."""
        parts = {"bytes": "aligned bytes", "tokens": PAIRS}
        shares = ((name, counts[part] / counts[name].clamp(min=1)) for name, part in parts.items() if part in counts)
        return {f"aligned/{name}": share.item() for name, share in shares}

    def _pairs(self, batch: Batch, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of the student's and of the teacher's positions of `keep` predict a token that is in both vocabularies."""
        assert self.tokens is not None
        (ours, mask), (theirs, of_teacher) = (batch.read_by(path, keep) for path in ("student", "teacher"))
        one, other = single_tokens(ours.predicted_spans[mask], theirs.predicted_spans[of_teacher])
        targets = ours.targets[mask][one], theirs.targets[of_teacher][other]
        own, pair = (of.to(keep.device)[ids] for of, ids in zip(self.tokens.places, targets, strict=True))
        same = (own == pair) & (own >= 0)
        return one.masked_scatter(one, same), other.masked_scatter(other, same)

    def __call__(self, inputs: LossInputs, on_values: OnValues | None = None) -> dict[str, Tensor]:
        """Return each term's part of the step's loss, unweighted: its sum over positions or images / the step's count."""
        parts = {}
        for term in self.terms:
            values, rows = self._values(term, inputs)
            weights = None if term.score is None else self._weights(term, term.score, inputs)
            if on_values is not None:
                on_values(term.name, values.detach(), rows, weights)
            values = values if weights is None else weights * values
            parts[term.name] = values.sum() / inputs.counts[self.counted(term)].clamp(min=1)
        return parts

    def _values(self, term: Term, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Return a term at each position, image or span, [N], and the row of the batch that each belongs to, [N]."""
        signature, loss = term.signature, registry.resolve(term.kind, term.loss)
        given = self._given(term, inputs, signature, term.sides)
        given |= {"targets": given["student_targets"], "state": inputs.states.get(term.name, State())}
        if self.tokens is not None and self.counted(term) == PAIRS:  # a token's number is its column's
            given["targets"] = self.tokens.places[int(term.of != "student")].to(inputs.keep.device)[given["targets"]]
        if "first_pieces" in signature.positional and self.tokens is not None:
            given["first_pieces"] = self.tokens.first_pieces.to(inputs.keep.device)
        positional = (given[name] for name in signature.positional)
        if signature.of_images:
            return loss_per_image(loss, *positional, **term.parameters), inputs.batch.image_rows
        values = loss(*positional, **term.parameters)
        if signature.of_preferences:
            return values, given["rows"].unique()
        return values, span_rows(given["student_spans"]) if signature.of_spans else given["rows"]

    def _given(
        self, term: Term, inputs: LossInputs, signature: registry.Signature, sides: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return what the arguments of a loss or a score may name, of each side's path at the term's positions."""
        outputs, _, batch, keep = inputs[:4]
        tokens = self.tokens if self.counted(term) == PAIRS else None
        pairs = self._pairs(batch, keep) if tokens is not None else None
        given: dict[str, Any] = {"progress": inputs.progress}
        for side, path in sides.items():
            read, mask = batch.read_by(path, keep)
            # mostly all of [N, V] itself, not a copy of it for each term
            select = row_selector(pairs[read is not batch] if pairs else read.predicting(term.positions)[mask])
            given |= {f"{side}_targets": select(read.targets[mask]), f"{side}_image": select(read.image[mask])}
            given |= {"rows": select(mask.nonzero()[:, 0]), "signs": select(read.signs[mask])}
            given[f"{side}_rows"] = given["rows"]
            if signature.of_spans:
                given[f"{side}_spans"] = select(read.predicted_spans[mask])
            for kind in (kind for of, kind in signature.reads if of == side):
                output: Any = outputs.get(output_name(path, kind))
                if path in self.means:
                    output = self._mean(self.means[path], term.positions, inputs)
                elif kind in registry.OF_POSITIONS:
                    output = select(output)
                if kind == "logits" and tokens is not None:
                    output = output[:, tokens.shared[int(read is not batch)].to(output.device)]
                given[f"{side}_{kind}"] = output
        return given

    @torch.no_grad()
    def _weights(self, term: Term, score: registry.Signature, inputs: LossInputs) -> Tensor:
        """Return the weights of a term's positions, [N], by the score that its focus names."""
        focus = term.focus
        assert focus is not None
        # a loss with a gradient of its own would compute it although none is wanted here
        logits = {path: of.detach() for path, of in inputs.outputs.items() if isinstance(of, Tensor)}
        inputs = inputs._replace(outputs=logits)
        given = self._given(term, inputs, score, {path: path for path in (*score.sides, term.of)})
        given["targets"] = given[f"{term.of}_targets"]
        arguments, function = [given[name] for name in score.positional], registry.resolve("focus", focus.by)
        size = max(1, BLOCK // max(of.shape[-1] for of in arguments if of.ndim > 1))
        blocks = zip(*(of.split(size) for of in arguments), strict=True)
        scores = torch.cat([function(*block, **focus.parameters) for block in blocks])
        return weights(scores, given["rows"], share=focus.share, mass=focus.mass, of_examples=focus.of == "examples")

    @torch.no_grad()
    def _mean(self, mean: PathSpec, on: str, inputs: LossInputs) -> Tensor:
        """Return the logarithm of the mean of some paths' distributions at the positions of `on`, [N, V]."""
        each, losses = [], []
        for path in mean.mean:
            read, mask = inputs.batch.read_by(path, inputs.keep)
            logits, rows = cast(Tensor, inputs.outputs[path]), mask.nonzero()[:, 0]
            chosen, answers = read.predicting(on)[mask], read.predicting("answer")[mask]
            each.append(logits[chosen].float().log_softmax(-1))
            loss = torch.zeros(2, len(mask), device=mask.device)
            of_answers = cross_entropy(read.targets[mask][answers], logits[answers])
            loss.index_add_(1, rows[answers], torch.stack([of_answers, torch.ones_like(of_answers)]))
            losses.append(loss[0] / loss[1].clamp(min=1) * (mean.by == "loss"))
        shares = (torch.stack(losses) / -mean.temperature).log_softmax(0)[:, rows[chosen]]
        return (torch.stack(each) + shares[..., None]).logsumexp(0)

    def total(self, parts: Mapping[str, Tensor], weights: Mapping[str, float] = {}) -> Tensor:
        """Return the weighted sum of the terms, which is minimised; `weights` are those that vary."""
        weighted = (weights.get(term.name, float(term.weight)) * parts[term.name] for term in self.terms)
        return sum(weighted, torch.zeros(()))
