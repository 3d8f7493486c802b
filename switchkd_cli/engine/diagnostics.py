"""What a distillation step is asked unasked: is the teacher better, does the student agree, where is the knee,
does every term pull."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.losses import cross_entropy, effective_k, forward_kl
from switchkd_cli.engine.losses.columns import absent_columns
from switchkd_cli.recipe.schema import Term

MIN_K = 3  # dbild's own bound where a recipe gives none


@torch.no_grad()
def diagnose(logits: Mapping[str, Tensor], targets: Tensor, terms: Sequence[Term]) -> dict[str, float]:
    """Figures of one micro-batch from the logits [N, V] it already has.

    - `teacher_ce`, `student_ce`: cross-entropy of either on the supervised tokens, in nats
    - `agreement/<path>`: share of positions where the path's first choice is the teacher's
    - `kl/student`: KL(teacher || student) in nats on the same positions
    - `switch_gap`: KL(teacher || switch) in nats; at step 0 it says how far V_S is from what L_T can read
    - `k/<path>/mean|p5|p95`: effective k of each side of a DBiLD term
    - `k/<path>/raised|cut`: share of positions whose knee lies below `min_k`, beyond `max_k`
    - `mass/<path>`: probability that the path's top k holds
    """
    if "teacher" not in logits:
        return {}
    figures = {}
    teacher, answered = logits["teacher"], targets != IGNORE
    if answered.any():
        for path in ("teacher", "student"):
            if path in logits:
                own = cross_entropy(targets[answered], logits[path][answered])
                figures[f"{path}_ce"] = own.mean().item()
    for path in logits.keys() - {"teacher"}:
        agreed = logits[path].argmax(-1) == teacher.argmax(-1)
        figures[f"agreement/{path}"] = agreed.float().mean().item()
    if "student" in logits:
        figures["kl/student"] = forward_kl(teacher, logits["student"]).mean().item()
    if "switch" in logits:
        figures["switch_gap"] = forward_kl(teacher, logits["switch"]).mean().item()
    if led := [term.parameters for term in terms if term.loss == "dbild"]:
        for path, values in logits.items():
            figures |= _top(path, values, **_bounds(led[-1]))
    return figures


def pulls(
    parts: Mapping[str, Tensor], terms: Sequence[Term], trained: Mapping[str, Sequence[Tensor]]
) -> dict[str, float]:
    """`grad/<term>/<part>`: norm of each weighted term's gradient on each trained part that it reaches.

    `parts` are the terms' values with their graph, which is kept. Only the vectors among a part's parameters
    (biases and gains: they stand at every depth) are looked at: no weight matrix gets a gradient, so this takes
    next to no memory, and less than a backward pass a term. Nothing is measured where there is one term.
    """
    terms = [term for term in terms if term.weight > 0]
    if len(terms) < 2:
        return {}
    probes = {part: [p for p in given if p.ndim == 1] or list(given) for part, given in trained.items()}
    flat = [(part, p) for part, chosen in probes.items() for p in chosen]
    squares: dict[str, float] = {}
    for term in terms:
        value = term.weight * parts[term.name]
        if not value.requires_grad:
            continue
        found = torch.autograd.grad(value, [p for _, p in flat], retain_graph=True, allow_unused=True)
        for (part, _), gradient in zip(flat, found, strict=True):
            if gradient is not None:
                name = f"grad/{term.name}/{part}"
                squares[name] = squares.get(name, 0.0) + gradient.float().square().sum().item()
    return {name: value**0.5 for name, value in squares.items()}


def _bounds(parameters: Mapping[str, int | None]) -> dict[str, int | None]:
    """What a DBiLD term says of its k."""
    given = {key: value for key in ("window", "max_k") if (value := parameters.get(key)) is not None}
    return {"min_k": parameters.get("min_k", MIN_K), **given}


def _top(
    path: str, logits: Tensor, *, min_k: int, max_k: int | None = None, window: int | None = None
) -> dict[str, float]:
    """Effective k and the mass of the top k of one path."""
    free = effective_k(logits, window=window, min_k=1)  # where the knee is, whatever the bounds
    k = free.clamp(min_k, max_k).minimum((~absent_columns(logits)).sum(-1))  # as dbild bounds it
    ranked = logits.float().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    mass = ranked.gather(-1, k[:, None] - 1)
    low, high = torch.quantile(k.float(), torch.tensor([0.05, 0.95], device=k.device)).tolist()
    return {
        f"k/{path}/mean": k.float().mean().item(),
        f"k/{path}/p5": low,
        f"k/{path}/p95": high,
        f"k/{path}/raised": (free < k).float().mean().item(),
        f"k/{path}/cut": (free > k).float().mean().item(),
        f"mass/{path}": mass.mean().item(),
    }
