"""Layers of transformers' models, computed otherwise than their own forward does: again in the backward pass, or at fewer positions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BY_POSITION = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
"""Of a layer of L, as transformers calls them: what gives each position's own query, attention's output, and the rest."""


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
