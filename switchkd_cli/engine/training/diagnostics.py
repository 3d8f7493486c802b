"""Diagnostics logged for every distillation stage: teacher against student, agreement, knees, each term's gradient."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch, row_selector
from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.losses.divergences import forward_kl
from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.losses.ops.leaders import BLOCK
from switchkd_cli.engine.losses.ops.vocabulary import mask_padding, padding_columns
from switchkd_cli.recipe.schema import Term
from switchkd_cli.report.grouping import grouped

SHARE = "vision_share/"
"""Begins the names of figures: the share of a term's gradient that reaches V_S and not only the switch's adapter."""


COMPARED = ("student", "switch", "teacher")
"""The paths that are compared with the teacher, and itself."""


class KneeSpec(NamedTuple):
    """Where a loss takes the knee of rows of logits: whose logits lead (`path`), at which positions (`on`), within what."""

    path: str
    on: str
    select: TopKAtKnee


class Diagnostics:
    """Figures of one micro-batch from the logits that its loss needs anyway, in any number of chunks.

    On the supervised tokens, whatever positions the terms read, if there is a teacher; without the student's where it reads
    other tokens than the teacher, and without the knees of terms that compare bytes:

    - `teacher_ce`, `student_ce`: cross-entropy of either, in nats
    - `agreement/<path>`: share of positions where the path's most likely token is the teacher's
    - `kl/student`: KL(teacher || student) in nats
    - `switch_gap`: KL(teacher || switch) in nats; at step 0 it says how far V_S is from what L_T can read

    Of each path that leads a term at its knees, on the term's positions:

    - `k/<term>/<path>/mean|p5|p95`: effective k
    - `k/<term>/<path>/raised|cut`: share of positions whose knee lies below `min_k`, beyond `max_k`
    - `mass/<term>/<path>`: probability of the path's top k

    Of each term with a focus: `focus/<term>/even`, its mean with even weights, to compare `loss/<term>` with, and
    `focus/<term>/zero`, the share of its positions with weight 0.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.knees = knee_specs(terms)
        self._values: dict[str, list[Tensor]] = {}  # by figure, its value at each position

    def add_values(self, term: str, values: Tensor, rows: Tensor, weights: Tensor | None) -> None:
        """Take in a term's values at N positions, and the weights that a focus gives them, [N]."""
        if weights is not None:
            self._values.setdefault(f"focus/{term}/even", []).append(values)
            self._values.setdefault(f"focus/{term}/zero", []).append((weights == 0).float())

    @torch.no_grad()
    def add(self, logits: Mapping[str, Tensor], batch: Batch, keep: Tensor) -> None:
        """Take in logits [N, V] by path, at the N positions of `keep` (`Batch.read_by`)."""
        found: dict[str, Tensor] = {}
        read = {path: batch.read_by(path, keep) for path in logits if path != "student" or batch.spans is None}
        answers = {path: of.predicting("answer")[mask] for path, (of, mask) in read.items()}
        if "teacher" in logits and answers["teacher"].any():
            selected = {path: row_selector(answers[path])(logits[path]) for path in COMPARED if path in answers}
            of_teacher, mask = read["teacher"]
            found |= _against_teacher(selected, of_teacher.targets[mask][answers["teacher"]])
        # what several terms share is sorted once
        for spec in dict.fromkeys(spec for _, spec in self.knees if spec.path in read):
            of, mask = read[spec.path]
            chosen = of.predicting(spec.on)[mask]
            if chosen.any():
                knee, k, mass = measure_knees(row_selector(chosen)(logits[spec.path]), spec)
                bounded = {"raised": (knee < k).float(), "cut": (knee > k).float()}
                for name in (f"{term}/{spec.path}" for term, other in self.knees if other == spec):
                    found |= {f"k/{name}/{figure}": values for figure, values in {"mean": k.float(), **bounded}.items()}
                    found[f"mass/{name}"] = mass
        for name, values in found.items():
            self._values.setdefault(name, []).append(values)

    def figures(self) -> dict[str, float]:
        """Return the figures over all positions taken in."""
        figures = {}
        for name, parts in self._values.items():
            values = torch.cat(parts)
            figures[name] = values.mean().item()
            if name.startswith("k/") and name.endswith("/mean"):
                low, high = torch.quantile(values, torch.tensor([0.05, 0.95], device=values.device)).tolist()
                figures |= {f"{name.removesuffix('mean')}p5": low, f"{name.removesuffix('mean')}p95": high}
        return figures


def knee_specs(terms: Sequence[Term]) -> list[tuple[str, KneeSpec]]:
    """Return the terms' names with each of their knees, as their losses declare (`registry.Signature.leaders`)."""
    specs = []
    for term in (term for term in terms if term.alignment == "positions"):
        signature = registry.signature("loss", term.loss)
        for side in signature.leaders(term.parameters):
            bounds = {name: term.parameters.get(name, signature.keywords[name].default) for name in registry.BOUNDS}
            path = term.of if side == "student" else term.to
            specs.append((term.name, KneeSpec(path, term.on, TopKAtKnee(**bounds))))
    return specs


@torch.no_grad()
def measure_knees(logits: Tensor, spec: KneeSpec) -> Iterator[Tensor]:
    """Return of rows of logits [N, V]: 1 + the knee's rank, the loss's k (the knee within its bounds), the top k's mass, [N].

    They are computed a block of rows at a time.
    """
    stats = []
    for block in logits.split(max(1, BLOCK // logits.shape[-1])):
        padding = padding_columns(block)
        top, rank, k = spec.select.search(block, padding)
        beyond_k = torch.arange(top.logits.shape[-1], device=k.device) >= k[:, None]
        log_top = top.logits.masked_fill(beyond_k, -torch.inf).logsumexp(-1)
        stats.append((1 + rank, k, (log_top - mask_padding(block, padding).logsumexp(-1)).exp()))
    return map(torch.cat, zip(*stats, strict=True))


def gradient_norms_by_term(
    weighted_terms: Iterable[tuple[str, Tensor]], trained: Mapping[str, Sequence[Tensor]]
) -> dict[str, float]:
    """Return `grad/<term>/<part>`: norm of each weighted term's gradient on each trained part that it reaches.

    `weighted_terms` are names and weighted values with their graph, which is kept. Only the vectors among a part's
    parameters (biases and gains, which exist at every depth) are used: no weight matrix gets a gradient, so this takes
    next to no memory, and less time than a backward pass for each term.
    """
    probes = {part: [p for p in all_of if p.ndim == 1] or list(all_of) for part, all_of in trained.items()}
    flat = [(part, p) for part, chosen in probes.items() for p in chosen]
    norms: dict[str, float] = {}
    for term, value in weighted_terms:
        if not value.requires_grad:
            continue
        found = torch.autograd.grad(value, [p for _, p in flat], retain_graph=True, allow_unused=True)
        gradients = grouped((part, of) for (part, _), of in zip(flat, found, strict=True) if of is not None)
        squares = {part: sum(g.float().square().sum().item() for g in of) for part, of in gradients.items()}
        norms |= {f"grad/{term}/{part}": square**0.5 for part, square in squares.items()}
    return norms


def with_shares(norms: Mapping[str, float]) -> dict[str, float]:
    """Add `vision_share/<term>` of each term that trains both V_S and the adapter behind it: V_S's part of the two norms."""
    shares = {}
    for name, adapter in norms.items():
        grad, term, part = name.split("/")
        vision = norms.get(f"{grad}/{term}/vision")
        if part == "adapter" and vision is not None and vision + adapter:
            shares[f"{SHARE}{term}"] = vision / (vision + adapter)
    return {**norms, **shares}


def average(diagnostics: Sequence[Mapping[str, float]], positions: Sequence[int]) -> dict[str, float]:
    """Return each diagnostic's mean over the processes that have it, weighted by the positions that they looked at.

    This is exact for means over positions; of quantiles and norms it is the mean.
    """
    if len(diagnostics) == 1:
        return dict(diagnostics[0])
    pairs = ((each, count) for each, count in zip(diagnostics, positions, strict=True) if count)
    found = grouped((name, (value, count)) for each, count in pairs for name, value in each.items())
    return {name: sum(n * value for value, n in of) / sum(n for _, n in of) for name, of in found.items()}


def _against_teacher(logits: Mapping[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
    """Return the figures of each supervised token, [N]."""
    teacher, others = logits["teacher"], {path: of for path, of in logits.items() if path != "teacher"}
    figures = {f"{path}_ce": cross_entropy(targets, of) for path, of in logits.items() if path != "switch"}
    figures |= {f"agreement/{path}": (of.argmax(-1) == teacher.argmax(-1)).float() for path, of in others.items()}
    gaps = {"student": "kl/student", "switch": "switch_gap"}
    return figures | {gaps[path]: forward_kl(teacher, of) for path, of in others.items()}
