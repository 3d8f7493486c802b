"""Every registered loss as an attribute: ``losses.forward_kl``; the k of rows of logits that lead at their knee."""

from types import SimpleNamespace

from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.losses.ops.vocabulary import padding_columns

losses = SimpleNamespace(**{name: registry.resolve("loss", name) for name in registry.LOSSES})


def effective_k(logits: Tensor, *, window: int | None = None, min_k: int = 3, max_k: int | None = None) -> Tensor:
    """Return the k that dbild takes where these logits [N, V] lead, int64 [N]."""
    return TopKAtKnee(window, min_k, max_k)(logits, padding_columns(logits))[1]
