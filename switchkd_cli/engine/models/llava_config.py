"""A LLaVA model's config and processor, made of its parts'."""

from typing import Any

from transformers import (
    CLIPVisionModel,
    LlavaConfig,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from switchkd_cli.engine.models.image_processors import default_image_processor
from switchkd_cli.engine.models.shape import CLASS_TOKENS, image_tokens_of
from switchkd_cli.engine.models.tokenizers import IMAGE

LANGUAGE_MODELS = ("qwen2", "llama")
TOWERS = {"siglip_vision_model": SiglipVisionModel, "clip_vision_model": CLIPVisionModel}


def joined(
    kind: type[LlavaConfig], vision: PretrainedConfig, text: PretrainedConfig, tokens: int, image: int, **settings: Any
) -> LlavaConfig:
    """Return the config, of a kind, of a model of a tower and a language model, whose head gets a column for each token.

    `tokens`: how many there are; `image`: the id of the image token; `settings`: other fields of the config.
    """
    text.vocab_size = max(text.vocab_size, tokens)
    settings |= {"projector_hidden_act": "gelu", "tie_word_embeddings": text.tie_word_embeddings}
    config = kind(vision_config=vision, text_config=text, image_token_index=image, **settings)
    config.image_seq_length = image_tokens_of(config)
    return config


def processor_for(
    config: LlavaConfig, image_processor: Any, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> LlavaProcessor:
    """Return transformers' processor, which writes one image token for each visual token of either projector.

    Without an image processor it is the usual one of the vision tower's kind.
    """
    pooling = getattr(config, "projector_pooling", 1)
    pools = pooling > 1
    return LlavaProcessor(
        image_processor=image_processor or default_image_processor(config.vision_config),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size * pooling,
        vision_feature_select_strategy="full" if pools else config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if pools else CLASS_TOKENS.get(config.vision_config.model_type, 0),
        chat_template=chat_template,
        image_token=IMAGE,
    )
