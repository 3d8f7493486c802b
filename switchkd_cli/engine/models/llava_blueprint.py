"""A LLaVA model before its weights are read: its parts must fit together, and with a student's for the switch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.engine.models import image_processors
from switchkd_cli.engine.models.family import Blueprint, Difference
from switchkd_cli.engine.models.image_processors import normalisation, preparation_difference, prepared_probes
from switchkd_cli.engine.models.llava import Llava, LlavaInputs
from switchkd_cli.engine.models.llava_config import features_of, image_tokens_of
from switchkd_cli.engine.models.tokenizers import IMAGE
from switchkd_cli.errors import UserError

FAMILY_HINT = "the switch needs two models of one family"
TOWERS_HINT = (
    "the switch feeds the teacher's projector: give the student a tower of the teacher's build (student.vision)"
)
SELECT_HINT = "let both keep or both drop the first feature (student.feature_select)"
PROJECTOR_HINT = "give the student the teacher's kind of projector (student.projector)"
LAYER_HINT = "read both towers at one layer (student.feature_layer)"
IMAGES_HINT = "both see the same images: prepare them as the teacher does (student.image_processor=..., its checkpoint)"


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
    def image_processor(self):
        return self.inputs.processor.image_processor

    @property
    def grid(self) -> int:
        """The number of patches on a side of an image."""
        return self.config.vision_config.image_size // self.config.vision_config.patch_size

    def wrap(self, model: LlavaForConditionalGeneration) -> Llava:
        return Llava(model, self.inputs)

    def problems(self) -> Iterator[str]:
        tokenizer, vision = self.inputs.tokenizer, self.config.vision_config
        if (image := tokenizer.convert_tokens_to_ids(IMAGE)) != self.config.image_token_id:
            yield f"{IMAGE} is token {image} of the tokenizer, the config says {self.config.image_token_id}"
        layer, layers = self.config.vision_feature_layer, vision.num_hidden_layers
        if not isinstance(layer, int) or not -layers <= layer <= -1:
            yield f"feature_layer is counted from the end, -1 to -{layers}, got {layer}"
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
        side, features, pooling = self.grid, features_of(self.config), getattr(self.config, "projector_pooling", 1)
        if pooling > 1 and features != side**2:
            needed = f"ldpnetv2 needs the whole grid of {side} x {side} features, got {features}"
            yield f"{needed}: feature_select should drop CLIP's class token (default) and nothing of SigLIP (full)"
        elif side % pooling:
            yield f"ldpnetv2 needs a grid with a side divisible by {pooling}, got {side}"

    def vision_differences(self, student: Blueprint) -> Iterator[Difference]:
        """Yield each property in which the two models' vision differs, with a hint.

        Every tower of the family reads its grid row by row, so equal grids and selections give features in the same order.
        """
        if not isinstance(student, LlavaBlueprint):
            kinds = f"({self.config.model_type}) than the student's ({student.config.model_type})"
            yield f"teacher: it is of another family {kinds}", FAMILY_HINT
            return
        for name, value_of, hint in (
            ("vision width", lambda m: m.config.vision_config.hidden_size, TOWERS_HINT),
            ("image size", lambda m: m.config.vision_config.image_size, TOWERS_HINT),
            ("patch grid", lambda m: f"{m.grid} x {m.grid}", TOWERS_HINT),
            ("feature count", lambda m: features_of(m.config), SELECT_HINT),
            ("image token count", lambda m: image_tokens_of(m.config), PROJECTOR_HINT),
            ("image normalisation (mean, std)", lambda m: normalisation(m.image_processor), IMAGES_HINT),
        ):
            ours, theirs = value_of(student), value_of(self)
            if ours != theirs:
                yield f"teacher: {name} is {theirs}, the student's is {ours}", hint
        if ours == theirs:  # the same normalisation
            apart, settings = preparation_difference(student.image_processor, self.image_processor)
            if apart > image_processors.NEAR:
                yield f"teacher: images are prepared differently ({apart:.0%} apart): {settings}", IMAGES_HINT

    def layer_difference(self, student: Blueprint) -> Difference | None:
        ours, theirs = (getattr(model.config, "vision_feature_layer", None) for model in (student, self))
        return None if ours == theirs else (f"teacher: feature layer is {theirs}, the student's is {ours}", LAYER_HINT)

    def image_note(self, student: Blueprint) -> str | None:
        apart, settings = preparation_difference(student.inputs.processor.image_processor, self.image_processor)
        return f"teacher: images are prepared nearly alike ({apart:.1%} apart): {settings}" if apart else None
