"""The sizes of a model of any family, and its parameters: from its config, for which transformers has several names each."""

import copy
from collections.abc import Sequence
from typing import Any, Self

from torch import nn
from transformers import PretrainedConfig

from switchkd_cli.engine.inputs import USUAL
from switchkd_cli.engine.models.layer_forwards import by_position

CLASS_TOKENS = {"clip_vision_model": 1, "internvl_vision": 1}  # of other towers: none


class VisionShape:
    """V: `positions` patches (and the class token, if any) through `layers` up to the feature layer.

    `weights`: of the matrices of one layer, the mean of the layers. `attended`: how many positions one of them sees, the mean
    too. `norms`: of a layer, see `_norms`. `patches` have `values` numbers each. `input_norm`: there is a norm before the
    first layer (as in CLIP). `gated`: its MLP has three matrices.
    """

    def __init__(self, model: Any) -> None:
        config, vision = model.model.config, model.model.config.vision_config
        self.width, self.layers = vision_width(config), layers_before_features(config)
        layers = model.seam.vision_layers(model.core)[: self.layers]
        self.patches: float = patch_grid(config)[1] ** 2
        if model.seam.places:
            self.patches = vision.default_output_length * vision.pooling_kernel_size**2
        self.positions = self.patches + CLASS_TOKENS.get(vision.model_type, 0)
        window, complete = _of(vision, "window_size"), len(getattr(vision, "fullatt_block_indexes", ()))
        seen = min(self.positions, (window // vision.patch_size) ** 2) if window else self.positions
        self.attended = (seen * (self.layers - complete) + self.positions * complete) / self.layers
        self.inner: int = _of(vision, "intermediate_size") or int(self.width * vision.mlp_ratio)
        self.weights = _weights(layers)
        self.values: int = 3 * _of(vision, "patch_size") ** 2 * _of(vision, "temporal_patch_size", otherwise=1)
        self.activation: str = _of(vision, "hidden_act", otherwise="gelu")
        self.norms = _norms(layers, self.width, (self.width, self.width)) / self.width
        self.input_norm = vision.model_type == "clip_vision_model"
        self.gated = self.weights > 4 * self.width**2 + 2.5 * self.width * self.inner


class ProjectorShape:
    """P at each of its `places`, then `tokens` (fewer where it pools what it has computed).

    `first`, `second`: weights of its matrices, one after another; P may have several such pairs next to one another, or no
    second. `frozen`: weights of a projector in front of them that is never trained. `input`, `hidden`: widths of what they read.
    `convolution`: weights of one behind the pooling; 0: P doesn't pool.
    """

    def __init__(self, model: Any) -> None:
        config, modules = model.model.config, model.seam.projector(model.core)
        self.width: int = config.get_text_config().hidden_size
        self.tokens: float = image_tokens_of(config)
        each = [one for module in modules for one in (module if isinstance(module, nn.ModuleList) else [module])]
        kept = [one.get_submodule("frozen") for one in each if hasattr(one, "frozen")]
        self.frozen: int = sum(p.numel() for one in kept for p in _matrices(one))
        each = [one.get_submodule("map") if hasattr(one, "frozen") else one for one in each]
        pairs = [(found[0].numel(), found[1:]) for one in each if (found := _matrices(one))]
        hidden = [second[0].shape[1] if second else 0 for _, second in pairs]
        self.first = sum(first for first, _ in pairs)
        self.second = sum(p.numel() for _, second in pairs for p in second)
        self.input = sum(first // (inside or self.width) for (first, _), inside in zip(pairs, hidden, strict=True))
        self.hidden = sum(hidden)
        # LDPNetV2 pools what it has computed; the others compute what was pooled
        self.places: float = features_of(config) if hasattr(config, "projector_pooling") else self.tokens
        self.convolution = sum(p.numel() for one in each for p in one.parameters() if p.ndim > 2)


class LanguageShape:
    """L. `weights`: of the matrices of one layer, the mean of the layers; `norms`: see `_norms`.

    `queries`, `keys`: widths of all heads together. `last`: of the last layer's weights, those computed at the positions only
    that a head reads (`layer_forwards.only_at`).
    """

    def __init__(self, model: Any) -> None:
        text, layers = model.model.config.get_text_config(), model.language.layers
        if getattr(text, "is_heterogeneous", False):  # some of Gemma 4's layers have wider heads
            text = text.per_layer_config[0]
        self.width: int = text.hidden_size
        self.inner: int = text.intermediate_size
        self.vocabulary: int = text.vocab_size
        self.layers: int = text.num_hidden_layers
        self.heads: int = text.num_attention_heads
        head = _of(text, "head_dim", otherwise=self.width // self.heads)
        self.queries: int = self.heads * head
        self.keys: int = _of(text, "num_key_value_heads", otherwise=self.heads) * head
        self.weights = _weights(layers)
        self.norms = _norms(layers, self.width, (self.queries, self.keys)) / (2 * self.width)
        self.last = sum(p.numel() for module in by_position(layers[-1]) for p in _matrices(module))


class ModelShape:
    """A VisionLanguageModel, perhaps without weights, as V, P and L (head included), for one image, or tile, of the usual size.

    `features`: of it, that V gives. `any_size`: an image's size decides how many; `padded`: V computes as many in each case,
    and drops padding at its end. Parameters by part: `total` (a tied head counts once), and `trainable`: those that the forward
    pass uses.

    Of unlike layers it is the mean of their matrices. Attention is taken for that of the first layer of L, with all positions:
    else (windows, recurrent layers) a plan's figures are an estimate.
    """

    def __init__(self, model: Any) -> None:
        config, self.padded = model.model.config, bool(model.seam.places)
        self.vision, self.projector, self.language = VisionShape(model), ProjectorShape(model), LanguageShape(model)
        self.features: float = image_tokens_of(config) if self.padded else features_of(config)
        self.any_size = _of(config.vision_config, "image_size") is None
        self.total, self.trainable = count_parameters(model)

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(self.total.values())

    def trained(self, parts: frozenset[str]) -> int:
        """How many a stage trains that trains these parts."""
        return sum(count for part, count in self.trainable.items() if part in parts)

    def of_images(self, tokens: float) -> Self:
        """Return the same for images of `tokens` visual tokens, where an image's size decides."""
        if not (self.any_size and tokens):
            return self
        sized, ratio = copy.deepcopy(self), tokens / self.projector.tokens
        v, p = sized.vision, sized.projector
        if not self.padded:
            v.attended *= min(1.0, ratio) if v.attended < v.positions else ratio
            v.positions, v.patches = v.positions * ratio, v.patches * ratio
        p.places, p.tokens = p.places * ratio, tokens
        sized.features *= ratio
        return sized


def count_parameters(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Return `total` and `trainable` of a `ModelShape`, with the code that later picks what a stage trains."""
    total = {}
    for part, modules in model.parts.items():
        unique = {id(p): p for module in modules for p in module.parameters()}
        total[part] = sum(p.numel() for p in unique.values())
    return total, {part: sum(p.numel() for p in model.used_parameters(part).values()) for part in total}


def vision_width(config: PretrainedConfig) -> int:
    return _of(config.vision_config, "embed_dim", "hidden_size")  # with both, the second is L's


def output_widths(config: PretrainedConfig, levels: int) -> dict[str, int]:
    """Return the size of the last axis of what an adapter may stand behind: `features`, `tokens`, `mapped`, `attention`.

    `levels`: how many vectors of L's width a visual token has.
    """
    text = config.get_text_config()
    widths = {"features": vision_width(config) * levels, "tokens": text.hidden_size * levels}
    return {**widths, "mapped": text.hidden_size, "attention": text.num_attention_heads}


def layers_before_features(config: PretrainedConfig) -> int:
    """Return the number of vision layers up to the features; `vision_feature_layer` is counted from the end."""
    layers = _of(config.vision_config, "num_hidden_layers", "depth")
    return layers + 1 + _of(config, "vision_feature_layer", otherwise=-1)


def features_of(config: PretrainedConfig) -> int:
    """Return the number of features of one image, or tile, of the usual size, that the projector gets."""
    return patch_grid(config)[1] ** 2 + CLASS_TOKENS.get(config.vision_config.model_type, 0) - dropped_features(config)


def dropped_features(config: PretrainedConfig) -> int:
    """Return how many of a tower's features, at their beginning, the projector doesn't get.

    The selection "default" drops the first: CLIP's class token, or a SigLIP tower's first patch.
    """
    return int(getattr(config, "vision_feature_select_strategy", None) == "default")


def image_tokens_of(config: PretrainedConfig) -> int:
    """Return the number of visual tokens of one image, or tile; each may be made of a square of features."""
    return _of(config, "mm_tokens_per_image", otherwise=features_of(config) // _merged(config))


def patch_grid(config: PretrainedConfig) -> tuple[int, int]:
    """Return the sides of a square image, or tile, of the usual size, in pixels and in patches."""
    image = _of(config.vision_config, "image_size", otherwise=USUAL[0])
    return image, image // _of(config.vision_config, "patch_size")


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.ndim == 2]


def _weights(layers: Sequence[nn.Module]) -> float:
    """Return the number of weights in a layer's matrices, the mean of the layers."""
    return sum(p.numel() for layer in layers for p in _matrices(layer)) / len(layers)


def _norms(layers: Sequence[nn.Module], width: int, heads: tuple[int, int]) -> float:
    """Return the width of what a layer's norms and scales keep of a position where they are trained, the mean of the layers.

    A norm without a bias keeps what it reads, and that normalised. `heads`: widths of all queries, and of all keys.
    """
    kept = 0.0
    for layer in layers:
        of_layer = dict(layer.named_parameters())
        for name, parameter in of_layer.items():
            if parameter.ndim == 1 and not name.endswith("bias"):
                twice = "norm" in name and name.removesuffix("weight") + "bias" not in of_layer
                kept += (1 + twice) * (width if len(parameter) == width else heads["k_norm" in name])
    return kept / len(layers)


def _merged(config: PretrainedConfig) -> int:
    """Return how many features become one visual token."""
    inside = _of(config.vision_config, "spatial_merge_size", "pooling_kernel_size", otherwise=1)
    side = _of(config, "projector_pooling", "scale_factor", otherwise=inside)
    return round(1 / ratio**2) if (ratio := _of(config, "downsample_ratio")) else side**2


def _of(config: PretrainedConfig, *names: str, otherwise: Any = None) -> Any:
    """Return the first of these fields that the config has; of a list with one number for each side, the first number."""
    found = next((value for name in names if (value := getattr(config, name, None)) is not None), otherwise)
    return found[0] if isinstance(found, list | tuple) else found
