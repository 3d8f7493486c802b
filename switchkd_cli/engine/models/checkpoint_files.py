"""Names in checkpoints' files; a config's numbers are checked before a model is built: a file may hold any value."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.errors import UserError
from switchkd_cli.package_data import read_yaml

FIELDS: Mapping[str, Any] = read_yaml(__file__)
CHANNELS = 3
SIDES = ("image_size", "patch_size")  # some configs have a number for each side
GENERATION = "generation_config.json"


def read_config(checkpoint: CheckpointFolder) -> PretrainedConfig:
    """Return a folder's config. Raises UserError where it can't be read, or holds a number that no model has."""
    check_config(checkpoint.json("config.json"), checkpoint)
    with as_user_error(f"{checkpoint}: no readable config"):
        config = AutoConfig.from_pretrained(checkpoint.folder, **NO_CODE)
    check_config(config, checkpoint)
    return config


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


def notes_and_ends(checkpoint: CheckpointFolder, config: PretrainedConfig) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return a note of settings that change other tools' answers, and the ids that end an answer.

    They are those of generation_config.json; where there is none, the ids of the config.
    """
    generation = checkpoint.json(GENERATION) if checkpoint.has(GENERATION) else config.get_text_config().to_dict()
    ends = generation.get("eos_token_id")
    ids = (end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int and end >= 0)
    answers = FIELDS["answers"]
    settings = [f"{key} {generation[key]}" for key in answers if generation.get(key) not in (None, 0, 1, [])]
    note = f"{checkpoint}: {GENERATION}: {', '.join(settings)} not used: answers are the likeliest tokens, as trained"
    return (note,) if settings else (), tuple(ids)


def _problems(part: PretrainedConfig | Mapping[str, Any]) -> Iterator[str]:
    # the fields of a file may be another kind of model's: only their numbers are checked
    kinds, value_of = ((int, float), part.get) if isinstance(part, Mapping) else (object, partial(getattr, part))
    for field, most in FIELDS["limits"].items():
        value = value_of(field, None)
        for one in value if field in SIDES and isinstance(value, list | tuple) else [value]:
            if one is not None and isinstance(one, kinds) and not (type(one) is int and 1 <= one <= most):
                yield f"{field} must be a whole number from 1 to {most}, got {value!r}"
    if (channels := value_of("num_channels", CHANNELS)) != CHANNELS:
        yield f"num_channels must be {CHANNELS}, got {channels!r}"
    size, patch = map(value_of, SIDES, (None, None))
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
