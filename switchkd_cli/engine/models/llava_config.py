"""A LLaVA model's config and processor, made of its parts', and the sizes that follow from a config."""

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
from switchkd_cli.engine.models.shape import LanguageShape, ModelShape, ProjectorShape, VisionShape
from switchkd_cli.engine.models.tokenizers import IMAGE

LANGUAGE_MODELS = ("qwen2", "llama")
TOWERS = {"siglip_vision_model": SiglipVisionModel, "clip_vision_model": CLIPVisionModel}
CLASS_TOKENS = {"siglip_vision_model": 0, "clip_vision_model": 1}


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
        num_additional_image_tokens=0 if pools else CLASS_TOKENS[config.vision_config.model_type],
        chat_template=chat_template,
        image_token=IMAGE,
    )


def features_of(config: LlavaConfig) -> int:
    """Return the number of features of one image that the projector gets from the vision tower.

    "default" drops the first: CLIP's class token, or a SigLIP tower's first patch.
    """
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    dropped = config.vision_feature_select_strategy == "default"
    return patches + CLASS_TOKENS[vision.model_type] - int(dropped)


def layers_before_features(config: LlavaConfig) -> int:
    """Return the number of vision layers up to the features; `vision_feature_layer` is counted from the end."""
    return config.vision_config.num_hidden_layers + 1 + config.vision_feature_layer


def image_tokens_of(config: LlavaConfig) -> int:
    """Return the number of visual tokens of one image; a pooling projector makes fewer of them."""
    return features_of(config) // getattr(config, "projector_pooling", 1) ** 2


def shape(config: LlavaConfig) -> ModelShape:
    """Return the shape of a LLaVA model with a SigLIP or CLIP tower and a Qwen2 or Llama language model."""
    vision: Any = config.vision_config  # transformers' declared type is wider than what is stored
    text: Any = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        VisionShape(
            width=vision.hidden_size,
            inner=vision.intermediate_size,
            layers=layers_before_features(config),
            positions=(vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type],
            patch=vision.patch_size,
            image=vision.image_size,
            activation=vision.hidden_act,
            input_norm=vision.model_type == "clip_vision_model",
        ),
        ProjectorShape(vision.hidden_size, text.hidden_size, features_of(config), image_tokens_of(config)),
        LanguageShape(
            width=text.hidden_size,
            inner=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            queries=text.num_attention_heads * head,
            keys=text.num_key_value_heads * head,
            vocabulary=text.vocab_size,
        ),
    )
