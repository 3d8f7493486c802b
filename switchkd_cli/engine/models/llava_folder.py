"""A LLaVA model as a Hugging Face folder: SigLIP or CLIP, a projector, and a language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaConfig, LlavaProcessor

from switchkd_cli.engine.hub import NO_CODE, Stored, as_user_error
from switchkd_cli.engine.models import image_processors, ldpnet, tinyllava
from switchkd_cli.engine.models.config_limits import check_config, read_config
from switchkd_cli.engine.models.llava import LlavaBlueprint
from switchkd_cli.engine.models.llava_config import CLASS_TOKENS, TOWERS
from switchkd_cli.engine.models.tokenizers import own_template, padding
from switchkd_cli.engine.weights import check_weights, load_weights
from switchkd_cli.errors import UserError

GENERATION = "generation_config.json"
ALTERING = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
)
TYPES = ("llava", ldpnet.LlavaLdpConfig.model_type)


def is_whole(stored: Stored) -> bool:
    """Whether the folder says that it holds a whole model of this family, and not one part of one."""
    return model_type(stored) in (tinyllava.TYPE, *TYPES)


def read_whole(stored: Stored) -> LlavaBlueprint:
    """A whole checkpoint in either format, except its weights. Raises UserError for any other folder."""
    return tinyllava.read(stored) if model_type(stored) == tinyllava.TYPE else read(stored)


def model_type(stored: Stored) -> str | None:
    """The kind of model that a folder's config.json names."""
    return stored.json("config.json").get("model_type") if stored.has("config.json") else None


def read(stored: Stored) -> LlavaBlueprint:
    """The folder's config and processor; of its weights only the files' headers are read.

    Raises UserError for a folder that is empty, broken or of another family.
    """
    config = read_config(stored)
    if config.model_type not in TYPES or config.vision_config.model_type not in TOWERS:
        tower = f" with a {config.vision_config.model_type}" if config.model_type in TYPES else ""
        raise UserError(
            f"{stored} is a {config.model_type} checkpoint{tower}, not llava with {' or '.join(TOWERS)}",
            hint="name a LlavaForConditionalGeneration or TinyLLaVA folder, for example a run's model/",
        )
    check_config(config, stored)
    with as_user_error(f"{stored}: no readable processor"):
        processor = AutoProcessor.from_pretrained(stored.folder, **image_processors.PIL, **NO_CODE)
        if not isinstance(processor, LlavaProcessor):
            raise TypeError(f"{type(processor).__name__} is no LlavaProcessor")
        processor.chat_template = own_template(processor, processor.tokenizer)
        padding(processor.tokenizer)
    check_weights(stored)
    weights = partial(load_weights, AutoModelForImageTextToText, stored)
    told = stored.json(GENERATION) if stored.has(GENERATION) else config.text_config.to_dict()
    return LlavaBlueprint.of(
        config, counting(processor, config), weights, tuple(_notes(stored, told)), _ends(told)
    )


def _ends(told: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer by generation_config.json, or by the config where there is none."""
    ends = told.get("eos_token_id")
    return tuple(end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int and end >= 0)


def _notes(stored: Stored, told: Mapping[str, Any]) -> Iterator[str]:
    """What else is said there that changes what is answered: transformers takes it, whoever generates."""
    if said := ", ".join(f"{key} {told[key]}" for key in ALTERING if told.get(key) not in (None, 0, 1, [])):
        yield f"{stored}: {GENERATION}: answers are generated with {said}, as other tools do"


def counting(processor: LlavaProcessor, config: LlavaConfig) -> LlavaProcessor:
    """The processor, told how to count image tokens where it was saved before it had to know."""
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = CLASS_TOKENS[config.vision_config.model_type]
    return processor
