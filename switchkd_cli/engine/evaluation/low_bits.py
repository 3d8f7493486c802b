"""Round a model's linear layers to few bits, to score what a smaller copy of it answers."""

import math

import torch
from torch import nn

from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel

GROUP = 32
"""Weights of a row that share a scale, as in GGUF's Q4_0 and Q8_0."""


def quantise(model: VisionLanguageModel, bits: int, stored: torch.dtype) -> int:
    """Round the linear layers of V and L to `bits` bits, symmetrically in groups (torchao), and return the bytes that this saves.

    P, L's head, embeddings and norms stay as they are. A row whose width is no multiple of `GROUP` has smaller groups. The
    bytes are those of a file that packs the bits, with a scale of two bytes for each group, where `stored` is the dtype of
    the checkpoint's file; none is written.
    """
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    saved = 0
    modules = [module for part in (*model.parts["vision"], model.language) for module in part.modules()]
    for layer in dict.fromkeys(module for module in modules if isinstance(module, nn.Linear)):
        group, count = math.gcd(GROUP, layer.in_features), layer.weight.numel()
        how = {"granularity": PerGroup(group), "scale_dtype": torch.float16}
        quantize_(layer, IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), **how))
        saved += count * stored.itemsize - count * bits // 8 - count // group * torch.float16.itemsize
    return saved
