"""Check the numbers of a checkpoint's config before any model is built from it: a file may hold any value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from switchkd_cli.engine.hub import NO_CODE, Stored, as_user_error
from switchkd_cli.errors import UserError

LIMITS = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 24,
    "image_size": 1 << 12,
    "patch_size": 1 << 12,
    "projector_pooling": 1 << 4,
}
"""Several times what the largest published models of these families have."""
CHANNELS = 3
DAMAGED = "the checkpoint is damaged, or was never a model"


def read_config(stored: Stored) -> PretrainedConfig:
    """Return a folder's config. Raises UserError where it can't be read, or holds a value that no model has."""
    check_sizes(stored.json("config.json"), stored)
    with as_user_error(f"{stored}: no readable config"):
        return AutoConfig.from_pretrained(stored.folder, **NO_CODE)


def check_sizes(fields: Mapping[str, Any], who: object) -> None:
    """Raise UserError, naming every field, where a config.json holds a size that is too large.

    transformers' config classes make lists as long as the number of layers, so this is checked before they are called.
    """
    parts = {f"{name}.": part for name, part in fields.items() if isinstance(part, Mapping)}
    problems = [
        f"{who}: config: {name}{field} must be a whole number from 1 to {LIMITS[field]}, got {value!r}"
        for name, part in {"": fields, **parts}.items()
        for field, value in part.items()
        if field in LIMITS and isinstance(value, int | float) and not value <= LIMITS[field]
    ]
    if problems:
        raise UserError(problems, hint=DAMAGED)


def check_config(config: PretrainedConfig, who: object) -> None:
    """Raise UserError, naming every field, for sizes that no model has and for settings that would run other code.

    It allocates no memory and makes no layer.
    """
    parts = {"": config, "vision_config.": None, "text_config.": None}
    parts |= {name: getattr(config, name[:-1], None) for name in parts if name}
    problems = [
        f"{who}: config: {name}{problem}" for name, part in parts.items() if part for problem in _field_problems(part)
    ]
    if problems:
        raise UserError(problems, hint=DAMAGED)


def _field_problems(part: PretrainedConfig) -> Iterator[str]:
    for field, most in LIMITS.items():
        value = getattr(part, field, None)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            yield f"{field} must be a whole number from 1 to {most}, got {value!r}"
    if getattr(part, "num_channels", CHANNELS) != CHANNELS:
        yield f"num_channels must be {CHANNELS}, got {part.num_channels!r}"
    size, patch = getattr(part, "image_size", 1), getattr(part, "patch_size", 1)
    if type(size) is type(patch) is int and 0 < size < patch:
        yield f"image_size {size} is less than patch_size {patch}"
    if getattr(part, "quantization_config", None):
        yield "quantization_config: quantized weights can't be trained or taught from"
    if "/" in str(getattr(part, "_attn_implementation", "")):
        yield "attn_implementation: code from a hub is never run"
