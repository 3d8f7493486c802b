"""Read a LLaVA model from a Hugging Face folder: SigLIP or CLIP, a projector, and a language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.engine.models import image_processors, ldpnet, tinyllava
from switchkd_cli.engine.models.checkpoint_files import FIELDS, check_config, read_config
from switchkd_cli.engine.models.llava_blueprint import LlavaBlueprint
from switchkd_cli.engine.models.llava_config import TOWERS, processor_for
from switchkd_cli.engine.models.tokenizers import own_template, with_padding
from switchkd_cli.engine.weights import check_weights, load_weights
from switchkd_cli.errors import UserError

GENERATION = "generation_config.json"
MODEL_TYPES = ("llava", ldpnet.LlavaLdpConfig.model_type)


def recognises(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json describes a complete model of this family, and not one part."""
    return config.get("model_type") in (tinyllava.TYPE, *MODEL_TYPES)


def read(checkpoint: CheckpointFolder) -> LlavaBlueprint:
    """Read a complete checkpoint of either format: config, processor, and of its weights only the headers.

    Raises UserError for a folder that is empty, broken or of another family.
    """
    if checkpoint.json("config.json").get("model_type") == tinyllava.TYPE:
        return tinyllava.read(checkpoint)
    config = read_config(checkpoint)
    if config.model_type not in MODEL_TYPES or config.vision_config.model_type not in TOWERS:
        tower = f" with a {config.vision_config.model_type}" if config.model_type in MODEL_TYPES else ""
        raise UserError(
            f"{checkpoint} is a {config.model_type} checkpoint{tower}, not llava with {' or '.join(TOWERS)}",
            hint="name a LlavaForConditionalGeneration or TinyLLaVA folder, for example a run's model/",
        )
    check_config(config, checkpoint)
    with as_user_error(f"{checkpoint}: no readable processor"):
        processor = AutoProcessor.from_pretrained(checkpoint.folder, **image_processors.PIL, **NO_CODE)
        if not isinstance(processor, LlavaProcessor):
            raise TypeError(f"{type(processor).__name__} is not a LlavaProcessor")
        processor.chat_template = own_template(processor, processor.tokenizer)
        with_padding(processor.tokenizer)
        if processor.patch_size is None:  # older saved ones lack the fields from which image tokens are counted
            parts = processor.image_processor, processor.tokenizer, processor.chat_template
            processor = processor_for(config, *parts)
    check_weights(checkpoint)
    weights = partial(load_weights, AutoModelForImageTextToText, checkpoint)
    generation = checkpoint.json(GENERATION) if checkpoint.has(GENERATION) else config.text_config.to_dict()
    return LlavaBlueprint.of(config, processor, weights, tuple(_notes(checkpoint, generation)), _end_ids(generation))


def _end_ids(generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids that end an answer by generation_config.json, or by the config where there is none."""
    ends = generation.get("eos_token_id")
    return tuple(end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int and end >= 0)


def _notes(checkpoint: CheckpointFolder, generation: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note of other settings there that change answers: transformers always applies them."""
    answers = FIELDS["answers"]
    settings = [f"{key} {generation[key]}" for key in answers if generation.get(key) not in (None, 0, 1, [])]
    if settings:
        yield f"{checkpoint}: {GENERATION}: answers are generated with {', '.join(settings)}, as other tools do"
