"""Where a frozen model's weights are while they aren't used: in the machine's memory, or in parts in several processes."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

if TYPE_CHECKING:
    from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel


class Offloaded(nn.Module):
    """A layer whose weights stay where they are, and are copied to its input's device while it runs."""

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Cast the weights, but don't move them."""
        return super()._apply(lambda tensor: tensor.to(change(tensor.new_empty(0)).dtype), recurse)

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Any:
        with ExitStack() as stack:
            for module in self.modules():
                there = {name: p.to(hidden.device) for name, p in module._parameters.items() if p is not None}
                stack.enter_context(patch.dict(module._parameters, there))
            return super().forward(hidden, *arguments, **named)


def offload(model: "VisionLanguageModel") -> None:
    """Keep the weights of L's layers in the machine's memory. V, P, embeddings and head go where the model goes.

    The layers are computed again in the backward pass, which would otherwise keep the copies of all of them until then.
    """
    for layer in model.language.layers:
        layer.__class__ = type(type(layer).__name__, (Offloaded, type(layer)), {})


def shard(model: "VisionLanguageModel") -> None:
    """Divide the weights of L's layers among the processes (FSDP2), which run each layer together. Every process must call this.

    A layer is whole only while it runs. The first stays whole: reading its attention ends a pass inside it.
    """
    for layer in model.language.layers[1:]:
        fully_shard(layer, reshard_after_forward=True)  # by itself it would be so only after a backward pass
