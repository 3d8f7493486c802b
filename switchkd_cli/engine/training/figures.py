"""Figures: what is measured of paths at each position and not minimised. They are functions, named in registry.yaml.

A figure's function declares what it reads by the names of its arguments, as a loss does (`student_logits` of the path that is its
`of`, `teacher_logits` of its `to`, `targets`; features, tokens and attention, too), and returns a value for each position, or
image. So a `Figure` is a term without a part in the loss, the objective's code reads both, and one function serves any path:

    figures = [Figure(loss="agreement"), Figure(name="agreement/switch", loss="agreement", of="switch")]
    measure(figures, paths, batch, batch.predicting_in_all("answer"))

Those who measure: mixers (rounds.py, whose rules name figures as arguments), diagnostics.py, validation.py, the look at a
teacher's images (training_warnings.py), and evaluation/against_teacher.py.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch, PerImage
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.losses.ops.leaders import BLOCK
from switchkd_cli.engine.losses.ops.vocabulary import mask_padding, padding_columns
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.recipe.schema import Name, Term

Compute = Callable[[Batch, Collection[str], Tensor], Mapping[str, PerImage]]
"""`Paths`, or a replica of them: from a batch, names of outputs and a mask of positions to these outputs."""

SKETCH = 512  # numbers that stand for a distribution over the vocabulary


class Figure(Term):
    """A term that is measured and not minimised. `loss` is its function, a name in registry.yaml."""

    kind: ClassVar[registry.Kind] = "figure"
    name: str = ""
    to: Name = "teacher"


@torch.no_grad()
def measure(
    figures: Sequence[Figure], paths: Compute, batch: Batch, keep: Tensor, heads: Heads | None = None
) -> dict[str, Tensor]:
    """Return each figure's values at the positions of `keep` (`Batch.read_by`) that it is `on`, [N], or [N, W] of W numbers.

    With `heads` that make logits of hidden states, the logits of a chunk of positions exist at a time.
    """
    found: dict[str, list[Tensor]] = {figure.name: [] for figure in figures}
    objective = Objective(figures)
    chunked = ChunkedObjective(objective, dense=heads is None)
    outputs = paths(batch, chunked.outputs, keep)
    inputs = LossInputs(outputs, heads, batch, keep, objective.counts([batch]))
    chunked(inputs, on_values=lambda name, values, *_: found[name].append(values))
    return {name: torch.cat(values) for name, values in found.items()}


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the figures of one or more batches, one after another."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def agreement(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return 1 where both predict the same token, else 0, [N]."""
    return (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float()


def right(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the target is predicted, else 0, [N]."""
    return (student_logits.argmax(-1) == targets).float()


def confidence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the highest probability of both models' mean distribution, [N]."""
    teacher, student = (of.float().log_softmax(-1).exp() for of in (teacher_logits, student_logits))
    return (teacher + student).amax(-1) / 2


def distribution(student_logits: Tensor) -> Tensor:
    """Return a sketch of the probabilities of all tokens, [N, SKETCH]."""
    return sketched(student_logits.float().log_softmax(-1).exp())


def sketched(distributions: Tensor) -> Tensor:
    """Return [n, V] as [n, SKETCH], with about the same Euclidean distances: entries are added up with random signs.

    Squared distances are right in the mean over the signs (a count sketch), and exact where V is no larger than SKETCH.
    """
    size = distributions.shape[1]
    signs = 2 * torch.randint(2, (size,), generator=torch.Generator().manual_seed(0)) - 1
    return pad(distributions * signs.to(distributions), (0, -size % SKETCH)).unflatten(1, (-1, SKETCH)).sum(1)


def knee(student_logits: Tensor, *, window: int | None, min_k: int, max_k: int | None) -> Tensor:
    """Return of each row 1 + the knee's rank, the k of a loss (the knee within its bounds), and the top k's mass, [N, 3].

    They are computed a block of rows at a time.
    """
    select, found = TopKAtKnee(window, min_k, max_k), []
    for block in student_logits.split(max(1, BLOCK // student_logits.shape[-1])):
        padding = padding_columns(block)
        top, rank, k = select.search(block, padding)
        beyond_k = torch.arange(top.logits.shape[-1], device=k.device) >= k[:, None]
        log_top = top.logits.masked_fill(beyond_k, -torch.inf).logsumexp(-1)
        mass = (log_top - mask_padding(block, padding).logsumexp(-1)).exp()
        found.append(torch.stack([1 + rank, k, mass], 1))
    return torch.cat(found)
