"""Cross-entropy with the labels: L_CE."""

from torch import Tensor, nn

from switchkd_cli.engine.losses.ops.vocabulary import in_float


def cross_entropy(targets: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return -log softmax(z_S / temperature)[target] for each row, in nats, [N].

    ``targets`` [N] int64 are ids of the vocabulary, ``student_logits`` [N, V]. Algorithm 1 writes this
    softmax with the distillation temperature; the default reads that as loose notation (assumption) and
    takes 1.
    """
    return nn.functional.cross_entropy(in_float(student_logits) / temperature, targets, reduction="none")
