"""A LLaVA model before its weights are read: its parts must fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.engine.models import image_processors
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.image_processors import prepared_probes
from switchkd_cli.engine.models.llava import Llava, LlavaInputs
from switchkd_cli.engine.models.shape import features_of, image_tokens_of
from switchkd_cli.engine.models.tokenizers import IMAGE
from switchkd_cli.errors import UserError


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
            ids = processor(images=Image.new("RGB", image_processors.PROBES[0]), text=processor.image_token)[
                "input_ids"
            ][0]
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
