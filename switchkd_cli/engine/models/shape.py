"""The sizes of a model of any family, from its config, for which transformers has several names each."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PretrainedConfig

from switchkd_cli.engine.inputs import USUAL

CLASS_TOKENS = {"clip_vision_model": 1, "internvl_vision": 1}  # of other towers: none


class VisionShape(NamedTuple):
    """V: `positions` patches (and the class token, if any) through `layers` up to the feature layer.

    `input_norm`: there is a norm before the first layer (as in CLIP).
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
        """Number of weights in one layer's matrices: query, key, value, output, and the two of its MLP."""
        return 4 * self.width**2 + 2 * self.width * self.inner


class ProjectorShape(NamedTuple):
    """P: two matrices on each of `features`, then `tokens` (fewer than `features` where it pools)."""

    input: int
    width: int
    features: int
    tokens: int

    @property
    def weights(self) -> tuple[int, int]:
        """Number of weights in the first and in the second matrix."""
        return self.input * self.width, self.width**2

    @property
    def pooled(self) -> bool:
        return self.tokens < self.features


class LanguageShape(NamedTuple):
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
        """Number of weights in one layer's matrices: query and output, key and value, and the three of its gated MLP."""
        return 2 * self.width * self.queries + 2 * self.width * self.keys + 3 * self.width * self.inner


class ModelShape(NamedTuple):
    """A model as vision tower V, projector P and language model L (head included)."""

    vision: VisionShape
    projector: ProjectorShape
    language: LanguageShape

    @property
    def features(self) -> int:
        """How many of V's features of an image, or tile, P gets; it may read several of them as one."""
        return self.projector.features * self.projector.input // self.vision.width


def vision_width(config: PretrainedConfig) -> int:
    return _of(config.vision_config, "embed_dim", "hidden_size")  # with both, the second is L's


def layers_before_features(config: PretrainedConfig) -> int:
    """Return the number of vision layers up to the features; `vision_feature_layer` is counted from the end."""
    layers = _of(config.vision_config, "num_hidden_layers", "depth")
    return layers + 1 + _of(config, "vision_feature_layer", otherwise=-1)


def features_of(config: PretrainedConfig) -> int:
    """Return the number of features of one image, or tile, of the usual size, that the projector gets.

    The selection "default" drops the first of a tower's: CLIP's class token, or a SigLIP tower's first patch.
    """
    dropped = getattr(config, "vision_feature_select_strategy", None) == "default"
    return _patches(config) + CLASS_TOKENS.get(config.vision_config.model_type, 0) - int(dropped)


def image_tokens_of(config: PretrainedConfig) -> int:
    """Return the number of visual tokens of one image, or tile; each may be made of a square of features."""
    return _of(config, "mm_tokens_per_image", otherwise=features_of(config) // _merged(config))


def shape(config: PretrainedConfig) -> ModelShape:
    """Return the shape of a model, for one image, or tile, of the usual size.

    A projector is taken for LLaVA's two matrices, and every layer of L for its first: else a plan's figures are an estimate.
    """
    vision: Any = config.vision_config
    text: Any = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):  # some of Gemma 4's layers have wider heads
        text = text.per_layer_config[0]
    width, inner = vision_width(config), _of(vision, "intermediate_size")
    features, tokens = features_of(config), image_tokens_of(config)
    # LDPNetV2 computes each feature, then pools; the others first lay those of a token side by side
    merged = 1 if hasattr(config, "projector_pooling") else _merged(config)
    heads = text.num_attention_heads
    head = _of(text, "head_dim", otherwise=text.hidden_size // heads)
    return ModelShape(
        VisionShape(
            width=width,
            inner=inner or int(width * vision.mlp_ratio),
            layers=layers_before_features(config),
            positions=_patches(config) + CLASS_TOKENS.get(vision.model_type, 0),
            patch=_of(vision, "patch_size"),
            image=_of(vision, "image_size", otherwise=USUAL[0]),
            activation=_of(vision, "hidden_act", otherwise="gelu"),
            input_norm=vision.model_type == "clip_vision_model",
        ),
        ProjectorShape(width * merged, text.hidden_size, features // merged, tokens),
        LanguageShape(
            width=text.hidden_size,
            inner=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=heads,
            queries=heads * head,
            keys=_of(text, "num_key_value_heads", otherwise=heads) * head,
            vocabulary=text.vocab_size,
        ),
    )


def _patches(config: PretrainedConfig) -> int:
    return (_of(config.vision_config, "image_size", otherwise=USUAL[0]) // _of(config.vision_config, "patch_size")) ** 2


def _merged(config: PretrainedConfig) -> int:
    """Return how many features become one visual token."""
    inside = _of(config.vision_config, "spatial_merge_size", "pooling_kernel_size", otherwise=1)
    side = _of(config, "projector_pooling", "scale_factor", otherwise=inside)
    return round(1 / ratio**2) if (ratio := _of(config, "downsample_ratio")) else side**2


def _of(config: PretrainedConfig, *names: str, otherwise: Any = None) -> Any:
    """Return the first of these fields that the config has; of a list with one number for each side, the first number."""
    found = next((value for name in names if (value := getattr(config, name, None)) is not None), otherwise)
    return found[0] if isinstance(found, list | tuple) else found
