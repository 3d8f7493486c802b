"""Read a LLaVA model from a Hugging Face folder: SigLIP or CLIP, a projector, and a language model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.engine.models import image_processors, ldpnet, tinyllava
from switchkd_cli.engine.models.checkpoint_files import check_config, notes_and_ends, read_config
from switchkd_cli.engine.models.llava import LlavaBlueprint
from switchkd_cli.engine.models.llava_config import TOWERS, processor_for
from switchkd_cli.engine.models.tokenizers import own_template, with_padding
from switchkd_cli.engine.weights import check_weights, load_weights
from switchkd_cli.errors import UserError

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
    return LlavaBlueprint.of(config, processor, weights, *notes_and_ends(checkpoint, config))
