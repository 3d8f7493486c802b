"""Linear layers with weights of few bits: rounded for good, or in each pass of a training that learns to live with it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from switchkd_cli.engine.models.layer_forwards import forwards
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel

GROUP = 32
"""Weights of a row that share a scale, as in GGUF's Q4_0 and Q8_0."""
SCALE = torch.float16


def quantise(model: VisionLanguageModel, bits: int, stored: torch.dtype) -> int:
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
def rounded(model: VisionLanguageModel, bits: int | None) -> Iterator[None]:
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
        rounding[layer] = partial(_product, layer, IntxFakeQuantizer(config))
    with forwards(rounding):
        yield


def _product(layer: nn.Linear, rounding: nn.Module, inputs: Tensor) -> Tensor:
    """Return the layer's output with rounded weights: the weights that it has now, which FSDP2 exchanges."""
    return linear(inputs, rounding(layer.weight), layer.bias)


def linear_layers(model: VisionLanguageModel) -> list[nn.Linear]:
    """Return the layers that are rounded: those of V and L, without L's head."""
    modules = [module for part in (*model.parts["vision"], model.language) for module in part.modules()]
    return list(dict.fromkeys(module for module in modules if isinstance(module, nn.Linear)))


def _group(layer: nn.Linear) -> int:
    return math.gcd(GROUP, layer.in_features)


def _grid(layer: nn.Linear, bits: int) -> tuple[torch.dtype, Any]:
    """Return torchao's names of the numbers that weights are rounded to, and of what shares a scale."""
    from torchao.quantization import PerGroup

    return getattr(torch, f"int{bits}"), PerGroup(_group(layer))
