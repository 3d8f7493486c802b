"""What a distillation step is asked unasked: is the teacher better, does the student agree, where are the knees,
does every term pull."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from switchkd_cli.engine.batch import Batch, only
from switchkd_cli.engine.losses import cross_entropy, forward_kl
from switchkd_cli.engine.training.knee_stats import Knees, Sought, knees, sought, together
from switchkd_cli.recipe.schema import Term


class Diagnosis:
    """Figures of one micro-batch from logits that it has anyway, in however many chunks they come.

    On the supervised tokens, whatever else a term looks at, if there is a teacher:

    - `teacher_ce`, `student_ce`: cross-entropy of either, in nats
    - `agreement/<path>`: share of positions where the path's first choice is the teacher's
    - `kl/student`: KL(teacher || student) in nats
    - `switch_gap`: KL(teacher || switch) in nats; at step 0 it says how far V_S is from what L_T can read

    Of each path that leads a term at its knees, on the term's positions:

    - `k/<term>/<path>/mean|p5|p95`: effective k
    - `k/<term>/<path>/raised|cut`: share of positions whose knee lies below `min_k`, beyond `max_k`
    - `mass/<term>/<path>`: probability that the path's top k holds
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.sought = sought(terms)
        self._beside: dict[str, list[Tensor]] = {}  # by figure, its value at each position
        self._knees: dict[Sought, list[Knees]] = {}

    @torch.no_grad()
    def look(self, logits: Mapping[str, Tensor], batch: Batch, keep: Tensor) -> None:
        """Takes in logits [N, V] by path, at the N positions of `keep` [B, T]."""
        answers = batch.predicting("answer")[keep]
        if "teacher" in logits and answers.any():
            at_answers = only(answers)
            answered = {path: at_answers(values) for path, values in logits.items()}
            for name, values in _beside_teacher(answered, at_answers(batch.targets[keep])).items():
                self._beside.setdefault(name, []).append(values)
        for at in dict.fromkeys(at for _, at in self.sought):  # what several terms seek alike is sorted once
            chosen = batch.predicting(at.on)[keep]
            if chosen.any():
                self._knees.setdefault(at, []).append(knees(only(chosen)(logits[at.path]), at))

    def figures(self) -> dict[str, float]:
        """Over all positions that were looked at."""
        figures = {name: torch.cat(values).mean().item() for name, values in self._beside.items()}
        for term, at in self.sought:
            if at in self._knees:
                figures |= _figures(f"{term}/{at.path}", together(self._knees[at]))
        return figures


def pulls(weighed: Iterable[tuple[str, Tensor]], trained: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """`grad/<term>/<part>`: norm of each weighted term's gradient on each trained part that it reaches.

    `weighed` are the terms' names and weighted values with their graph, which is kept. Only the vectors among a part's
    parameters (biases and gains: they stand at every depth) are looked at: no weight matrix gets a gradient, so this
    takes next to no memory, and less than a backward pass a term.
    """
    probes = {part: [p for p in given if p.ndim == 1] or list(given) for part, given in trained.items()}
    flat = [(part, p) for part, chosen in probes.items() for p in chosen]
    squares: dict[str, float] = {}
    for term, value in weighed:
        if not value.requires_grad:
            continue
        found = torch.autograd.grad(value, [p for _, p in flat], retain_graph=True, allow_unused=True)
        for (part, _), gradient in zip(flat, found, strict=True):
            if gradient is not None:
                name = f"grad/{term}/{part}"
                squares[name] = squares.get(name, 0.0) + gradient.float().square().sum().item()
    return {name: value**0.5 for name, value in squares.items()}


def _beside_teacher(logits: Mapping[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
    """The figures of each supervised token, [N]."""
    teacher, figures = logits["teacher"], {}
    for path in ("teacher", "student"):
        if path in logits:
            figures[f"{path}_ce"] = cross_entropy(targets, logits[path])
    for path in (path for path in logits if path != "teacher"):
        figures[f"agreement/{path}"] = (logits[path].argmax(-1) == teacher.argmax(-1)).float()
    for path, name in (("student", "kl/student"), ("switch", "switch_gap")):
        if path in logits:
            figures[name] = forward_kl(teacher, logits[path])
    return figures


def _figures(name: str, found: Knees) -> dict[str, float]:
    k = found.k.float()
    low, high = torch.quantile(k, torch.tensor([0.05, 0.95], device=k.device)).tolist()
    return {
        f"k/{name}/mean": k.mean().item(),
        f"k/{name}/p5": low,
        f"k/{name}/p95": high,
        f"k/{name}/raised": (found.knee < found.k).float().mean().item(),
        f"k/{name}/cut": (found.knee > found.k).float().mean().item(),
        f"mass/{name}": found.mass.mean().item(),
    }
