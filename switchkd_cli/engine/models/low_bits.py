"""Linear layers with weights of few bits: packed while they are frozen (bitsandbytes), rounded for good, or in each pass of a
training that learns to live with it (torchao)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from switchkd_cli.engine.hub import forbid_kernels
from switchkd_cli.engine.models.layer_forwards import forwards

if TYPE_CHECKING:
    from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel

BLOCK = 64  # packed weights that share a scale, as in QLoRA (2305.14314)
BYTES = {4: 1 / 2 + (1 + 4 / 256) / BLOCK, 8: 1 + 4 / BLOCK}
"""Of a packed weight with its share of a scale: 4 bytes, or one and a share of 4."""
GROUP = 32
"""Weights of a row, rounded, that share a scale, as in GGUF's Q4_0 and Q8_0."""
SCALE = torch.float16


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
        return _PackedProduct.apply(inputs, self)

    def plain(self) -> nn.Linear:
        """Return the same layer with its rounded weights in full precision."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.weight), self.bias
        return layer

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.packed = change(self.packed)
        self.state.to(self.packed.device)  # not cast: the scales of packed weights are float32
        return super()._apply(change, recurse)


class _PackedProduct(torch.autograd.Function):
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


def quantise(model: "VisionLanguageModel", bits: int, stored: torch.dtype) -> int:
    """Round the linear layers of V and L to `bits` bits, symmetrically in groups (torchao), and return the bytes that this saves.

    P, L's head, embeddings and norms stay as they are. A row whose width is no multiple of `GROUP` has smaller groups. The
    bytes are those of a file that packs the bits, with a scale of two bytes for each group, where `stored` is the dtype of
    the checkpoint's file; none is written.
    """
    from torchao.quantization import IntxWeightOnlyConfig, quantize_

    saved = 0
    for layer in linear_layers(model):
        (dtype, granularity), group, count = _grid(layer, bits), _group(layer), layer.weight.numel()
        quantize_(layer, IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity, scale_dtype=SCALE))
        saved += count * stored.itemsize - count * bits // 8 - count // group * SCALE.itemsize
    return saved


@contextmanager
def rounded(model: "VisionLanguageModel", bits: int | None) -> Iterator[None]:
    """Inside the block the layers that `quantise` rounds compute with rounded weights; their own weights stay, and learn.

    Each pass rounds anew, by the same grid. The gradient of a rounded weight is that of the weight (straight-through,
    1308.3432); where the largest of a group is cut to the grid's end it is 0. None: nothing is rounded.
    """
    if bits is None:
        yield
        return
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    rounding: dict[nn.Module, Callable[..., Any]] = {}
    for layer in linear_layers(model):
        dtype, granularity = _grid(layer, bits)
        config = IntxFakeQuantizeConfig(dtype, granularity, is_symmetric=True, scale_precision=SCALE)
        rounding[layer] = partial(_rounded_product, layer, IntxFakeQuantizer(config))
    with forwards(rounding):
        yield


def _rounded_product(layer: nn.Linear, rounding: nn.Module, inputs: Tensor) -> Tensor:
    """Return the layer's output with rounded weights: the weights that it has now, which FSDP2 exchanges."""
    return linear(inputs, rounding(layer.weight), layer.bias)


def linear_layers(model: "VisionLanguageModel") -> list[nn.Linear]:
    """Return the layers that are rounded: those of V and L, without L's head."""
    modules = [module for part in (*model.parts["vision"], model.language) for module in part.modules()]
    return list(dict.fromkeys(module for module in modules if isinstance(module, nn.Linear)))


def _group(layer: nn.Linear) -> int:
    return math.gcd(GROUP, layer.in_features)


def _grid(layer: nn.Linear, bits: int) -> tuple[torch.dtype, Any]:
    """Return torchao's names of the numbers that weights are rounded to, and of what shares a scale."""
    from torchao.quantization import PerGroup

    return getattr(torch, f"int{bits}"), PerGroup(_group(layer))
