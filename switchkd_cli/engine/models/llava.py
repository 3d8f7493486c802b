"""LLaVA as V, P and L: transformers' own LlavaForConditionalGeneration, or LDPNetV2's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from switchkd_cli.engine.batch import ImageInput
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.models.image_processors import prepared_pixels
from switchkd_cli.engine.models.model_folder import portable_config, published_tensors
from switchkd_cli.engine.models.seams import Tower
from switchkd_cli.engine.models.tokenizers import with_chat_template
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel

SEAM = Tower(at_layer=True)


class LlavaInputs(InputProcessor):
    """Square images of one size, each of which takes `image_tokens` visual tokens."""

    seam = SEAM

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        super().__init__(processor)
        self.image_tokens = image_tokens

    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        """Return `pixel_values` [3, H, W] of each image."""
        pixels = prepared_pixels(self.processor.image_processor, list(images))
        return [PreparedImage({"pixel_values": each}, self.usual_text) for each in pixels]

    @property
    def usual_text(self) -> str:
        return self.image_text * self.image_tokens


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
