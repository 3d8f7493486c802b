"""LLaVA: what must fit in its files, and its config and processor, made of its parts'."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from transformers import LlavaConfig, LlavaProcessor, PretrainedConfig, PreTrainedTokenizerBase

from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.processors import IMAGE, default_image_processor, prepared_probes
from switchkd_cli.engine.models.seams import Tower
from switchkd_cli.engine.models.shape import CLASS_TOKENS, features_of, image_tokens_of

LANGUAGE_MODELS = ("qwen2", "llama")
TOWERS = ("siglip_vision_model", "clip_vision_model")
SEAM = Tower(at_layer=True)


@dataclass(frozen=True)
class LlavaBlueprint(Blueprint):
    """All of a LLaVA model except its weights."""

    @classmethod
    def of(cls, config: LlavaConfig, processor: LlavaProcessor, *rest: Any) -> Self:
        """Return a blueprint from transformers' processor; `rest` as in `Blueprint`."""
        return cls(config, InputProcessor(processor, config, SEAM), *rest)

    @property
    def kind(self) -> str:
        return "llava"

    def _image_problems(self) -> Iterator[str]:
        tokenizer, vision = self.inputs.tokenizer, self.config.vision_config
        if (image := tokenizer.convert_tokens_to_ids(IMAGE)) != self.config.image_token_id:
            yield f"{IMAGE} is token {image} of the tokenizer, the config says {self.config.image_token_id}"
        size = tuple(prepared_probes(self.image_processor).shape[-2:])
        with as_user_error("the processor can't prepare an image"):
            tokens = self.inputs.usual.text.count(self.inputs.image_text)
        if size != (vision.image_size, vision.image_size):
            yield f"the image processor makes images of {size}, the vision tower takes {vision.image_size} x {vision.image_size}"
        elif tokens != image_tokens_of(self.config):
            yield f"the processor puts {tokens} image tokens into the text, the model makes {image_tokens_of(self.config)}"
        yield from self._pooling_problems()

    def _pooling_problems(self) -> Iterator[str]:
        """Yield why a pooling projector can't arrange the features in a grid, or can't halve it."""
        vision, features = self.config.vision_config, features_of(self.config)
        side, pooling = vision.image_size // vision.patch_size, getattr(self.config, "projector_pooling", 1)
        if pooling > 1 and features != side**2:
            needed = f"ldpnetv2 needs the whole grid of {side} x {side} features, got {features}"
            yield f"{needed}: feature_select should drop CLIP's class token (default) and nothing of SigLIP (full)"
        elif side % pooling:
            yield f"ldpnetv2 needs a grid with a side divisible by {pooling}, got {side}"


def joined(
    kind: type[LlavaConfig], vision: PretrainedConfig, text: PretrainedConfig, tokens: int, image: int, **settings: Any
) -> LlavaConfig:
    """Return the config, of a kind, of a model of a tower and a language model, whose head gets a column for each token.

    `tokens`: how many there are; `image`: the id of the image token; `settings`: other fields of the config.
    """
    text.vocab_size = max(text.vocab_size, tokens)
    if vision.model_type == "siglip_vision_model":
        vision.vision_use_head = False  # the pooling head would never see a gradient
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
