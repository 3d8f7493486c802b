"""Names in checkpoints' files; a config's numbers are checked before a model is built: a file may hold any value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.errors import UserError
from switchkd_cli.package_data import read_yaml

FIELDS: Mapping[str, Any] = read_yaml(__file__)
CHANNELS = 3


def read_config(checkpoint: CheckpointFolder) -> PretrainedConfig:
    """Return a folder's config. Raises UserError where it can't be read, or holds a number that no model has."""
    check_config(checkpoint.json("config.json"), checkpoint)
    with as_user_error(f"{checkpoint}: no readable config"):
        return AutoConfig.from_pretrained(checkpoint.folder, **NO_CODE)


def check_config(config: PretrainedConfig | Mapping[str, Any], who: object) -> None:
    """Raise UserError, naming every field, for sizes that no model has and for settings that would run other code.

    It allocates no memory and makes no layer. transformers' config classes make lists as long as the number of layers, so
    the fields of a JSON file are checked before a config is made of them, and again with the defaults in it.
    """
    fields = config if isinstance(config, Mapping) else vars(config)
    parts = {"": config} | {f"{name}.": p for name, p in fields.items() if isinstance(p, Mapping | PretrainedConfig)}
    problems = [f"{who}: config: {name}{problem}" for name, part in parts.items() for problem in _problems(part)]
    if problems:
        raise UserError(problems, hint="the checkpoint is damaged, or was never a model")


def _problems(part: PretrainedConfig | Mapping[str, Any]) -> Iterator[str]:
    # the fields of a file may be another kind of model's: only their numbers are checked
    kinds, value_of = ((int, float), part.get) if isinstance(part, Mapping) else (object, partial(getattr, part))
    for field, most in FIELDS["limits"].items():
        value = value_of(field, None)
        if value is not None and isinstance(value, kinds) and not (type(value) is int and 1 <= value <= most):
            yield f"{field} must be a whole number from 1 to {most}, got {value!r}"
    if (channels := value_of("num_channels", CHANNELS)) != CHANNELS:
        yield f"num_channels must be {CHANNELS}, got {channels!r}"
    size, patch = value_of("image_size", 1), value_of("patch_size", 1)
    if type(size) is type(patch) is int and 0 < size < patch:
        yield f"image_size {size} is less than patch_size {patch}"
    if value_of("quantization_config", None):
        yield "quantization_config: quantized weights can't be trained or taught from"
    if "/" in str(value_of("_attn_implementation", "")):
        yield "attn_implementation: code from a hub is never run"


def renamed(name: str, prefixes: Mapping[str, str]) -> str | None:
    """Return a tensor's name with its prefix replaced; None where it has none of the prefixes."""
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return None if prefix is None else prefixes[prefix] + name.removeprefix(prefix)
