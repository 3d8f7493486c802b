"""LLaVA: transformers' own LlavaForConditionalGeneration, or LDPNetV2's, its inputs, and what must fit in its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from switchkd_cli.engine.batch import ImageInput
from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.image_processors import PROBES, prepared_pixels, prepared_probes
from switchkd_cli.engine.models.model_folder import portable_config, published_tensors
from switchkd_cli.engine.models.seams import Tower
from switchkd_cli.engine.models.shape import features_of, image_tokens_of
from switchkd_cli.engine.models.tokenizers import IMAGE, with_chat_template
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.errors import UserError

SEAM = Tower(at_layer=True)


class LlavaInputs(InputProcessor):
    """Square images of one size, each of which takes `image_tokens` visual tokens."""

    seam = SEAM

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        super().__init__(processor)
        self.image_tokens = image_tokens

    def prepare(self, images: Sequence[Image.Image]) -> list[PreparedImage]:
        """Return `pixel_values` [3, H, W] of each image."""
        pixels = prepared_pixels(self.processor.image_processor, list(images))
        return [PreparedImage({"pixel_values": each}, self.image_text * self.image_tokens) for each in pixels]


class Llava(VisionLanguageModel):
    """A LLaVA model as V, P and L."""

    model: LlavaForConditionalGeneration
    inputs: LlavaInputs

    @property
    def processor(self) -> LlavaProcessor:
        """transformers' own processor, which is saved with the model."""
        return self.inputs.processor

    def blank_image(self) -> ImageInput:
        side = self.model.config.vision_config.image_size
        return {"pixel_values": torch.zeros(3, side, side, device=self.model.device)}

    def processor_to_save(self, template: str | None, end: str | None) -> LlavaProcessor:
        return with_chat_template(self.inputs.processor, template, end)

    def tensors_to_save(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], bool]:
        """A model with a projector that transformers doesn't have keeps its tensors' names."""
        plain = type(self.model) is LlavaForConditionalGeneration
        return published_tensors(state) if plain else state, plain

    def config_to_save(self, fields: dict[str, Any], processor: LlavaProcessor) -> dict[str, Any]:
        return portable_config(fields, self.model.config, processor)


@dataclass(frozen=True)
class LlavaBlueprint(Blueprint):
    """All of a LLaVA model except its weights."""

    config: LlavaConfig
    inputs: LlavaInputs

    @classmethod
    def of(cls, config: LlavaConfig, processor: LlavaProcessor, *rest: Any) -> Self:
        """Return a blueprint from transformers' processor; `rest` as in `Blueprint`."""
        return cls(config, LlavaInputs(processor, image_tokens_of(config)), *rest)

    @property
    def kind(self) -> str:
        return "llava"

    def wrap(self, model: LlavaForConditionalGeneration) -> Llava:
        return Llava(model, self.inputs)

    def problems(self) -> Iterator[str]:
        tokenizer, vision = self.inputs.tokenizer, self.config.vision_config
        if (image := tokenizer.convert_tokens_to_ids(IMAGE)) != self.config.image_token_id:
            yield f"{IMAGE} is token {image} of the tokenizer, the config says {self.config.image_token_id}"
        yield from self._layer_problems()
        try:
            size, tokens = tuple(prepared_probes(self.image_processor).shape[-2:]), self._written_image_tokens()
        except UserError as error:
            yield from error.problems
            return
        if size != (vision.image_size, vision.image_size):
            yield f"the image processor makes images of {size}, the vision tower takes {vision.image_size} x {vision.image_size}"
        elif tokens != image_tokens_of(self.config):
            yield f"the processor puts {tokens} image tokens into the text, the model makes {image_tokens_of(self.config)}"
        yield from self._pooling_problems()

    def _written_image_tokens(self) -> int:
        """Return the number of image tokens that transformers' processor writes for an image."""
        processor = self.inputs.processor
        with as_user_error("the image processor can't prepare an image"):
            ids = processor(images=Image.new("RGB", PROBES[0]), text=processor.image_token)["input_ids"][0]
        return list(ids).count(processor.tokenizer.convert_tokens_to_ids(IMAGE))

    def _pooling_problems(self) -> Iterator[str]:
        """Yield why a pooling projector can't arrange the features in a grid, or can't halve it."""
        vision, features = self.config.vision_config, features_of(self.config)
        side, pooling = vision.image_size // vision.patch_size, getattr(self.config, "projector_pooling", 1)
        if pooling > 1 and features != side**2:
            needed = f"ldpnetv2 needs the whole grid of {side} x {side} features, got {features}"
            yield f"{needed}: feature_select should drop CLIP's class token (default) and nothing of SigLIP (full)"
        elif side % pooling:
            yield f"ldpnetv2 needs a grid with a side divisible by {pooling}, got {side}"
