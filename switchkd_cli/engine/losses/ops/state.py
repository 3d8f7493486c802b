"""What a loss keeps from one optimiser step to the next, and moving averages."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


class State(dict[str, Any]):
    """Numbers and tensors of a term, by name: empty before the first step, the same for every micro-batch of a step.

    `sums` are what the losses of a step have added up for the update that follows; None where nothing is trained.
    """

    sums: dict[str, Tensor] | None = None

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum over all micro-batches and processes of the step."""
        if self.sums is not None:
            self.sums[name] = self.sums.get(name, 0) + value.detach()


def updated_by(update: Callable[..., dict[str, Any]]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Give a loss that takes `state` the function that returns the state after a step.

    `update(state, sums, loss, progress, **parameters)`: `sums` are those of `State.add`, `loss` is the term's value over the
    whole step, unweighted, `progress` the share of the stage's steps before it, and `parameters` are all of the loss's.
    """

    def give(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        loss.update = update  # type: ignore[attr-defined]
        return loss

    return give


def ema(average: Any, value: Any, decay: float) -> Any:
    """Return the exponential moving average of numbers or tensors after another value; of none it is the value."""
    return value if average is None else decay * average + (1 - decay) * value
