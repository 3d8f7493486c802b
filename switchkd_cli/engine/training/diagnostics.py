"""Diagnostics logged for every distillation stage: teacher against student, agreement, knees, each term's gradient."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.training.figures import Figure, measure
from switchkd_cli.recipe.schema import Term
from switchkd_cli.report.grouping import grouped

SHARE = "vision_share/"
"""Begins the names of figures: the share of a term's gradient that reaches V_S and not only the switch's adapter."""


Counted = tuple[float, int]
"""A figure, and the number of positions that it is of."""

AGAINST_TEACHER = (
    Figure(name="teacher_ce", loss="loss", of="teacher", answers="given"),
    Figure(name="student_ce", loss="loss", answers="given"),
    Figure(name="agreement/own", loss="right", of="teacher", answers="own"),
    Figure(name="agreement/student", loss="agreement"),
    Figure(name="agreement/switch", loss="agreement", of="switch"),
    Figure(name="kl/student", loss="divergence"),
    Figure(name="switch_gap", loss="divergence", of="switch"),
)
"""Figures of the supervised tokens: see `Diagnostics`."""


class Diagnostics:
    """Figures of one micro-batch from the logits that its loss needs anyway, in any number of chunks.

    On the supervised tokens, whatever positions the terms read, if there is a teacher; without the student's where it reads
    other tokens than the teacher, and without the knees of terms that compare bytes:

    - `teacher_ce`, `student_ce`: cross-entropy of either on answers of the data, in nats
    - `agreement/own`: share of the tokens of the student's own answers that are the teacher's most likely ones
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
        self.knees = leading_knees(terms)
        self._values: dict[str, list[Tensor]] = {}  # by figure, its value at each position

    def add_values(self, term: str, values: Tensor, rows: Tensor, weights: Tensor | None) -> None:
        """Take in a term's values at N positions, and the weights that a focus gives them, [N]."""
        if weights is not None:
            self._values.setdefault(f"focus/{term}/even", []).append(values)
            self._values.setdefault(f"focus/{term}/zero", []).append((weights == 0).float())

    def add(self, logits: Mapping[str, Tensor], batch: Batch, keep: Tensor) -> None:
        """Take in logits [N, V] by path, at the N positions of `keep` (`Batch.read_by`)."""
        comparable = {path for path in logits if path != "student" or batch.spans is None}
        equal_once = {knee.name: knee for knee in self.knees.values()}
        figures = [of for of in (*AGAINST_TEACHER, *equal_once.values()) if {of.of, of.to} <= comparable]
        for name, values in measure(figures, lambda *_: logits, batch, keep).items():
            if len(values):
                self._values.setdefault(name, []).append(values)

    def figures(self) -> dict[str, float]:
        """Return the figures over all positions taken in."""
        return {name: value for name, (value, _) in self.counted().items()}

    def counted(self) -> dict[str, Counted]:
        """Return the same with the number of each figure's positions."""
        values = {name: torch.cat(parts) for name, parts in self._values.items()}
        figures = {name: (of.mean().item(), len(of)) for name, of in values.items() if of.ndim == 1}
        for leader in (of for of, knee in self.knees.items() if knee.name in values):
            rank, k, mass = values[self.knees[leader].name].T.contiguous()
            low, high = torch.quantile(k, k.new_tensor([0.05, 0.95])).tolist()
            raised, cut, *means = (of.float().mean().item() for of in (rank < k, rank > k, k, mass))
            of_k = {"mean": means[0], "p5": low, "p95": high, "raised": raised, "cut": cut}
            found = {f"k/{leader}/{name}": value for name, value in of_k.items()} | {f"mass/{leader}": means[1]}
            figures |= {name: (value, len(k)) for name, value in found.items()}
        return figures


def leading_knees(terms: Sequence[Term]) -> dict[str, Figure]:
    """Return the figure `knee` of each path that leads a term (`registry.Signature.leaders`), as `<term>/<path>`."""
    found = {}
    for term in (term for term in terms if term.alignment == "positions"):
        signature = term.signature
        bounds = {name: of.default for name, of in signature.keywords.items() if name in registry.BOUNDS}
        bounds |= {name: value for name, value in term.parameters.items() if name in bounds}
        for side in signature.leaders(term.parameters):
            path = term.of if side == "student" else term.to
            name = f"{path}'s knee on {term.positions} within {bounds}"
            how: dict[str, Any] = {"on": term.on, "answers": term.answers, "parameters": bounds}
            found[f"{term.name}/{path}"] = Figure(name=name, loss="knee", of=path, to=path, **how)
    return found


def gradient_norms_by_term(
    weighted_terms: Iterable[tuple[str, Tensor]], trained: Mapping[str, Sequence[Tensor]]
) -> dict[str, float]:
    """Return `grad/<term>/<part>`: norm of each weighted term's gradient on each trained part that it reaches.

    Of a term that trains both V_S and the adapter behind it `vision_share/<term>`, too: V_S's part of the two norms.

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
        parts = {part: sum(g.float().square().sum().item() for g in of) ** 0.5 for part, of in gradients.items()}
        norms |= {f"grad/{term}/{part}": norm for part, norm in parts.items()}
        if {"vision", "adapter"} <= parts.keys() and (both := parts["vision"] + parts["adapter"]):
            norms[f"{SHARE}{term}"] = parts["vision"] / both
    return norms


def average(diagnostics: Sequence[Mapping[str, Counted]]) -> dict[str, float]:
    """Return each diagnostic's mean over the processes that have it, weighted by its positions there.

    This is exact for means over positions; of quantiles and norms it is the mean.
    """
    if len(diagnostics) == 1:
        return {name: value for name, (value, _) in diagnostics[0].items()}
    found = grouped((name, of) for each in diagnostics for name, of in each.items() if of[1])
    return {name: sum(n * value for value, n in of) / sum(n for _, n in of) for name, of in found.items()}
