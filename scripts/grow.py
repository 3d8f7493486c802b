"""Widen the language model of a playground model, so that a larger one starts from what a smaller one has learnt.

    python -m scripts.grow runs/language/small/seed0/model runs/grown/base --width 96

The wider model computes what the narrow one does (Net2Net's idea, 1511.05641): new heads, units and dimensions have small random
weights where they read, and zeros where they write.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from switchkd_cli.engine.build import load

NOISE = 0.02  # the standard deviation of fresh weights, as transformers' own
WRITES = ("embed_tokens", "lm_head", "o_proj", "down_proj", "linear_2")
"""The matrices whose output is added to the hidden states, or is them."""


def widen(model: LlavaForConditionalGeneration, width: int) -> LlavaForConditionalGeneration:
    """Return the model with a language model of `width`, a multiple of its heads' width; its logits are the same."""
    old = model.config.text_config
    head = old.hidden_size // old.num_attention_heads
    config = copy.deepcopy(model.config)
    text = config.text_config
    text.hidden_size, text.intermediate_size = width, old.intermediate_size * width // old.hidden_size
    text.num_attention_heads = text.num_key_value_heads = width // head
    text.rms_norm_eps = old.rms_norm_eps * old.hidden_size / width  # a mean over more dimensions, all new ones zero
    wide = LlavaForConditionalGeneration(config).to(model.dtype)
    narrow = model.state_dict()
    torch.manual_seed(0)
    for name, to in wide.state_dict().items():
        to.copy_(_widened(name, narrow[name], to.shape, scale=math.sqrt(old.hidden_size / width)))
    wide.tie_weights()
    return wide


def _widened(name: str, old: Tensor, shape: torch.Size, scale: float) -> Tensor:
    """Return a weight in its new shape, with the old one in its first rows and columns."""
    if old.shape == shape:
        return old
    if "norm" in name:
        return torch.cat([old, old.mean().expand(shape[0] - len(old))]) * scale
    reads = old.dim() == 2 and not any(part in name for part in WRITES)
    new = torch.randn(shape) * NOISE if reads else torch.zeros(shape)
    new[tuple(slice(size) for size in old.shape)] = old
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the model/ folder of a finished run")
    parser.add_argument("folder", type=Path, help="where the wider model goes")
    parser.add_argument("--width", type=int, required=True)
    asked = parser.parse_args()
    model = load(str(asked.model))
    with torch.no_grad():
        widen(model.model, asked.width).save_pretrained(asked.folder)
    model.inputs.processor.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
