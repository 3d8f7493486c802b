"""A checkpoint's config, its numbers looked at before anything is built of them: a file may say anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from switchkd_cli.engine.hub import NO_CODE, Stored, explained
from switchkd_cli.errors import UserError

MOST = {
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
COLOURS = 3
DAMAGED = "the checkpoint is damaged, or was never a model"


def read_config(stored: Stored) -> PretrainedConfig:
    """The config of a folder. Raises UserError for one that can't be read, or that says what no model has."""
    check_sizes(stored.json("config.json"), stored)
    with explained(f"{stored}: no readable config"):
        return AutoConfig.from_pretrained(stored.folder, **NO_CODE)


def check_sizes(told: Mapping[str, Any], who: object) -> None:
    """Raises UserError, naming every field, where a config as it is written is too large to be made at all.

    transformers' own classes make lists as long as there are layers, so that it must be seen before.
    """
    halves = {name: half for name, half in told.items() if isinstance(half, Mapping)}
    problems = [
        f"{who}: config: {name}{field} must be a whole number from 1 to {MOST[field]}, got {value!r}"
        for name, part in {"": told, **{f"{name}.": half for name, half in halves.items()}}.items()
        for field, value in part.items()
        if field in MOST and isinstance(value, int | float) and not value <= MOST[field]
    ]
    if problems:
        raise UserError(problems, hint=DAMAGED)


def check_config(config: PretrainedConfig, who: object) -> None:
    """Raises UserError, naming every field, for sizes that no model has and for what would run other code.

    Nothing is allocated before, and no layer is made.
    """
    parts = {"": config, "vision_config.": None, "text_config.": None}
    parts |= {name: getattr(config, name[:-1], None) for name in parts if name}
    problems = [
        f"{who}: config: {name}{told}" for name, part in parts.items() if part for told in _wrong(part)
    ]
    if problems:
        raise UserError(problems, hint=DAMAGED)


def _wrong(part: PretrainedConfig) -> Iterator[str]:
    for field, most in MOST.items():
        value = getattr(part, field, None)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            yield f"{field} must be a whole number from 1 to {most}, got {value!r}"
    if getattr(part, "num_channels", COLOURS) != COLOURS:
        yield f"num_channels must be {COLOURS}, got {part.num_channels!r}"
    size, patch = getattr(part, "image_size", 1), getattr(part, "patch_size", 1)
    if type(size) is type(patch) is int and 0 < size < patch:
        yield f"image_size {size} is less than patch_size {patch}"
    if getattr(part, "quantization_config", None):
        yield "quantization_config: quantized weights can't be trained or taught from"
    if "/" in str(getattr(part, "_attn_implementation", "")):
        yield "attn_implementation: code from a hub is never run"
