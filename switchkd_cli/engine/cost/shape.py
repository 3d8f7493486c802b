"""The sizes of a model that its cost depends on, and how they are read from a LLaVA config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import LlavaConfig

from switchkd_cli.engine.models.llava import CLASS_TOKENS, features_of, image_tokens_of, layers_in_front


@dataclass(frozen=True)
class VisionShape:
    """V: `positions` patches (and a class token, if there is one) through `layers` up to the feature layer.

    `input_norm`: a norm stands in front of the first layer (CLIP's).
    """

    width: int
    inner: int
    layers: int
    positions: int
    patch: int
    image: int
    activation: str
    input_norm: bool = False

    @property
    def weights(self) -> int:
        """Entries of one layer's matrices: query, key, value, output, and the two of its MLP."""
        return 4 * self.width**2 + 2 * self.width * self.inner


@dataclass(frozen=True)
class ProjectorShape:
    """P: two matrices on each of `features`, then `tokens` (fewer where neighbours are pooled)."""

    input: int
    width: int
    features: int
    tokens: int

    @property
    def weights(self) -> tuple[int, int]:
        """Entries of the first and of the second matrix."""
        return self.input * self.width, self.width**2

    @property
    def pooled(self) -> bool:
        return self.tokens < self.features


@dataclass(frozen=True)
class LanguageShape:
    """L. `queries` and `keys`: widths of all query heads and of all key heads together."""

    width: int
    inner: int
    layers: int
    heads: int
    queries: int
    keys: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """Entries of one layer's matrices: query and output, key and value, and the three of its gated MLP."""
        return 2 * self.width * self.queries + 2 * self.width * self.keys + 3 * self.width * self.inner


@dataclass(frozen=True)
class ModelShape:
    """A model as vision tower V, projector P and language model L (head included)."""

    vision: VisionShape
    projector: ProjectorShape
    language: LanguageShape


def shape(config: LlavaConfig) -> ModelShape:
    """Return the shape of a LLaVA model with a SigLIP or CLIP tower and a Qwen2 or Llama language model."""
    vision: Any = config.vision_config  # transformers' annotation allows a dict or None, too
    text: Any = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        VisionShape(
            width=vision.hidden_size,
            inner=vision.intermediate_size,
            layers=layers_in_front(config),
            positions=(vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type],
            patch=vision.patch_size,
            image=vision.image_size,
            activation=vision.hidden_act,
            input_norm=vision.model_type == "clip_vision_model",
        ),
        ProjectorShape(
            input=vision.hidden_size,
            width=text.hidden_size,
            features=features_of(config),
            tokens=image_tokens_of(config),
        ),
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
