"""Layers of transformers' models, run otherwise than by their own forward: again in the backward pass, at fewer positions, with
weights that lie in the machine's memory or in parts in several processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel

BY_POSITION = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
"""Of a layer of L, as transformers calls them: what gives each position's own query, attention's output, and the rest."""


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


@contextmanager
def recompute_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, each layer keeps only its input for the backward pass, which computes it again (1604.06174).

    transformers' gradient checkpointing does nothing in eval mode, the mode of the teacher that the switch's gradient
    passes through. So torch's checkpointing wraps each layer's forward, in either mode. Hooks stay outside it and run
    once. The random state is restored, so that dropout drops the same values. Without gradients nothing changes.
    """
    layers = list(layers) if torch.is_grad_enabled() else []
    with forwards({layer: partial(checkpoint, layer.forward, use_reentrant=False) for layer in layers}):
        yield


@contextmanager
def only_at(keep: Tensor, layer: nn.Module) -> Iterator[None]:
    """Inside the block, the layer computes at the positions of `keep` [B, T] only what no other position reads.

    That is all but keys and values. What it returns elsewhere has no meaning: for L's last layer, before a head that reads the
    chosen positions alone. A layer with other modules is computed as it is.
    """
    rows = keep.flatten().nonzero()[:, 0]
    at_positions = {module: partial(_at, rows, keep.shape, module.forward) for module in by_position(layer)}

    def forward(*arguments: Any, **options: Any) -> Any:
        with forwards(at_positions):  # here, as a layer that is computed again does the same again
            return complete(*arguments, **options)

    complete = layer.forward
    with forwards({layer: forward}):
        yield


def by_position(layer: nn.Module) -> list[nn.Module]:
    """Return the modules of a layer of L whose output at a position only that position reads: all of them, or none."""
    found = dict(layer.named_modules())
    return [found[name] for name in BY_POSITION] if found.keys() >= set(BY_POSITION) else []


def _at(rows: Tensor, shape: torch.Size, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return a module's output [B, T, D] for inputs of this shape [B, T], 0 at all but these rows of B x T."""
    if inputs.shape[:-1] != shape:  # there is another axis, or the layer has left out positions itself
        return forward(inputs)
    chosen = forward(inputs.flatten(0, 1)[rows])
    outputs = chosen.new_zeros(shape.numel(), chosen.shape[-1])
    outputs[rows] = chosen
    return outputs.unflatten(0, shape)


@contextmanager
def forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block, the modules have these forwards in place of their class's or of an outer block's."""
    with ExitStack() as stack:
        for module, forward in replaced.items():
            stack.enter_context(patch.object(module, "forward", forward))
        yield
