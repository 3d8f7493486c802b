"""What a distillation step is asked unasked: is the teacher better, does the student agree, where is the knee."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.losses import cross_entropy, effective_k, forward_kl
from switchkd_cli.recipe.schema import Term

KNEE_PARAMETERS = ("window", "min_k", "max_k")


@torch.no_grad()
def diagnose(logits: Mapping[str, Tensor], targets: Tensor, terms: Sequence[Term]) -> dict[str, float]:
    """Figures of one micro-batch from the logits [N, V] it already has.

    - `teacher_ce`: the teacher's own cross-entropy on the student's tokens, in nats
    - `agreement/<path>`: share of positions where the path's first choice is the teacher's
    - `switch_gap`: KL(teacher || switch) in nats; at step 0 it says how far V_S is from what L_T can read
    - `k/<path>/mean|p5|p95`: effective k of each side of a DBiLD term
    - `mass/<path>`: probability that the path's top k holds
    """
    if "teacher" not in logits:
        return {}
    figures = {}
    teacher, answered = logits["teacher"], targets != IGNORE
    if answered.any():
        figures["teacher_ce"] = cross_entropy(targets[answered], teacher[answered]).mean().item()
    for path in logits.keys() - {"teacher"}:
        agreed = logits[path].argmax(-1) == teacher.argmax(-1)
        figures[f"agreement/{path}"] = agreed.float().mean().item()
    if "switch" in logits:
        figures["switch_gap"] = forward_kl(teacher, logits["switch"]).mean().item()
    if led := [term.parameters for term in terms if term.loss == "dbild"]:
        knee = {key: value for key in KNEE_PARAMETERS if (value := led[-1].get(key)) is not None}
        for path, values in logits.items():
            figures |= _top(path, values, effective_k(values, **knee))
    return figures


def _top(path: str, logits: Tensor, k: Tensor) -> dict[str, float]:
    """Effective k and the mass of the top k of one path."""
    ranked = logits.float().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    mass = ranked.gather(-1, k[:, None] - 1)
    low, high = torch.quantile(k.float(), torch.tensor([0.05, 0.95], device=k.device)).tolist()
    return {
        f"k/{path}/mean": k.float().mean().item(),
        f"k/{path}/p5": low,
        f"k/{path}/p95": high,
        f"mass/{path}": mass.mean().item(),
    }
