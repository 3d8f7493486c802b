"""Cross-entropy with the labels: L_CE."""

from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32
from switchkd_cli.ranges import Positive


def cross_entropy(targets: Tensor, student_logits: Tensor, *, temperature: Positive = 1.0) -> Tensor:
    """Return -log softmax(z_S / temperature)[target] for each row of logits [N, V], in nats, [N].

    ``targets`` [N] int64 are token ids. Algorithm 1 writes this softmax with the distillation temperature; the default
    of 1 takes that for loose notation (assumption).
    """
    logits = at_least_float32(student_logits) / temperature
    return nn.functional.cross_entropy(logits, targets, reduction="none")
