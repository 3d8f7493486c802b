"""Frozen linear layers whose weights are kept in 8 or 4 bits, by bitsandbytes, and multiplied in full precision."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from switchkd_cli.engine.hub import forbid_kernels

BLOCK = 64  # weights that share a scale, as in QLoRA (2305.14314)
BYTES = {4: 1 / 2 + (1 + 4 / 256) / BLOCK, 8: 1 + 4 / BLOCK}
"""Of a weight with its share of a scale: 4 bytes, or one and a share of 4."""


class PackedLinear(nn.Linear):
    """A frozen linear layer of 4 bits a weight (NF4, its scales in 8 bits: 2305.14314) or of 8 (blockwise: 2110.02861).

    Its products, and the gradients of their inputs, are exactly those of the rounded weights. bitsandbytes' own layers are
    not used: the one of 8 bits rounds inputs too, and the one of 4 packs its weights anew on some CPUs and then has no gradient.
    """

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        self.bias = layer.bias
        # neither parameters nor buffers: DDP would send them in every step
        if bits == 4:
            how = {"blocksize": BLOCK, "compress_statistics": True, "quant_type": "nf4"}
            self.packed, self.state = _functional().quantize_4bit(layer.weight.detach(), **how)
        else:
            self.packed, self.state = _functional().quantize_blockwise(layer.weight.detach(), blocksize=BLOCK)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The rounded weights [out, in] as a new tensor."""
        unpack = _functional().dequantize_4bit if self.bits == 4 else _functional().dequantize_blockwise
        return unpack(self.packed, self.state)

    def forward(self, inputs: Tensor) -> Tensor:
        return _Product.apply(inputs, self)

    def plain(self) -> nn.Linear:
        """Return the same layer with its rounded weights in full precision."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.weight), self.bias
        return layer

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.packed = change(self.packed)
        self.state.to(self.packed.device)  # not cast: the scales of packed weights are float32
        return super()._apply(change, recurse)


class _Product(torch.autograd.Function):
    """A product with packed weights that keeps neither them unpacked nor its inputs for the backward pass."""

    @staticmethod
    def forward(context: Any, inputs: Tensor, layer: PackedLinear) -> Tensor:
        context.layer = layer
        return linear(inputs, layer.weight.to(inputs.dtype), layer.bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ context.layer.weight.to(gradient.dtype), None


def pack(model: nn.Module, bits: int) -> None:
    """Replace the linear layers inside a model by packed ones."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            model.set_submodule(name, PackedLinear(layer, bits))


def _functional() -> Any:
    forbid_kernels()
    from bitsandbytes import functional

    return functional
