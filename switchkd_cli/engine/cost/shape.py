"""The numbers of a LLaVA config that its cost depends on."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlavaConfig

from switchkd_cli.engine.models.llava import CLASS_TOKENS, features_of, image_tokens_of, layers_in_front


@dataclass(frozen=True)
class Tower:
    """V. `positions`: patches and a class token, if there is one; `used`: layers in front of the feature layer.

    `normed`: a norm stands in front of the first layer (CLIP's).
    """

    width: int
    inner: int
    used: int
    positions: int
    patch: int
    image: int
    activation: str
    normed: bool = False

    @property
    def weights(self) -> int:
        """Entries of one layer's matrices: query, key, value, output, and the two of its MLP."""
        return 4 * self.width**2 + 2 * self.width * self.inner


@dataclass(frozen=True)
class Projector:
    """P: two matrices on each of `features`, then `tokens` (fewer where neighbours are pooled)."""

    seen: int
    width: int
    features: int
    tokens: int

    @property
    def pooled(self) -> bool:
        return self.tokens < self.features


@dataclass(frozen=True)
class Reader:
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
class Shape:
    """A model as vision tower V, projector P and language model L (head included)."""

    vision: Tower
    projector: Projector
    language: Reader


def shape(config: LlavaConfig) -> Shape:
    """The shape of a LLaVA model with a SigLIP or CLIP tower and a Qwen2 or Llama language model."""
    vision, text = config.vision_config, config.text_config
    positions = (vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type]
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        Tower(
            width=vision.hidden_size,
            inner=vision.intermediate_size,
            used=layers_in_front(config),
            positions=positions,
            patch=vision.patch_size,
            image=vision.image_size,
            activation=vision.hidden_act,
            normed=vision.model_type == "clip_vision_model",
        ),
        Projector(
            seen=vision.hidden_size,
            width=text.hidden_size,
            features=features_of(config),
            tokens=image_tokens_of(config),
        ),
        Reader(
            width=text.hidden_size,
            inner=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            queries=text.num_attention_heads * head,
            keys=text.num_key_value_heads * head,
            vocabulary=text.vocab_size,
        ),
    )
