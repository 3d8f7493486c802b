"""The LLaVA family: transformers' own LlavaForConditionalGeneration, taken apart at its seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionModel,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.models.recompute import recomputed

TOWERS = {"siglip_vision_model": SiglipVisionModel, "clip_vision_model": CLIPVisionModel}
BUILT = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""What a tower's configuration says of its features, beside its weights."""
CLASS_TOKENS = {"siglip_vision_model": 0, "clip_vision_model": 1}


def features_of(config: LlavaConfig) -> int:
    """Features of one picture as the vision tower hands them to the projector.

    "default" drops the first: CLIP's class token, or a SigLIP tower's first patch.
    """
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    dropped = config.vision_feature_select_strategy == "default"
    return patches + CLASS_TOKENS[vision.model_type] - int(dropped)


def layers_in_front(config: LlavaConfig) -> int:
    """Layers of the vision tower in front of the features that `vision_feature_layer`, counted from the end, names."""
    return config.vision_config.num_hidden_layers + 1 + config.vision_feature_layer


def image_tokens_of(config: LlavaConfig) -> int:
    """Tokens that one picture takes in the language model's sequence; a pooling projector makes them fewer."""
    return features_of(config) // getattr(config, "projector_pooling", 1) ** 2


@dataclass(frozen=True)
class Blueprint:
    """All of a model but its weights, which `weights` reads or draws in a given dtype.

    `ends` are the ids that end what the model generates, as far as its files say. `notes` says what was decided
    while reading that the files themselves don't say.
    """

    config: LlavaConfig
    processor: LlavaProcessor
    weights: Callable[[str], LlavaForConditionalGeneration] = field(repr=False)
    notes: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture takes in the language model's sequence."""
        return image_tokens_of(self.config)

    def build(self, dtype: str = "float32") -> Llava:
        """The model itself. Raises UserError for weights that are not the config's."""
        model = self.weights(dtype)
        if self.ends:
            model.generation_config.eos_token_id = list(self.ends) if len(self.ends) > 1 else self.ends[0]
        return Llava(model, self.processor)


class Llava(nn.Module):
    """A LLaVA model as vision tower V, projector P and language model L (head included).

    `model` stays a plain transformers model, so what is saved loads without this package. `processor` prepares
    pictures and text for it. The layers of the parts in `recomputed` ("vision", "language") keep their inputs only for
    the backward pass, which computes them again.
    """

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.recomputed: frozenset[str] = frozenset()

    @property
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules behind each name that a recipe's `train` may hold."""
        core = self.model.model
        return {
            "vision": (_inside(core.vision_tower),),
            "projector": (core.multi_modal_projector,),
            "language": (core.language_model, self.model.lm_head),
        }

    def reached(self, part: str) -> dict[str, nn.Parameter]:
        """The part's parameters that a forward pass uses, by name.

        The tower's features are taken at `vision_feature_layer`; what lies behind it (later layers, the last
        norm, a pooling head) is not computed, so it is never trained.
        """
        unique = {id(p): (n, p) for module in self.parts[part] for n, p in module.named_parameters()}
        named = dict(unique.values())  # a tied head is counted once
        if part != "vision":
            return named
        layers = [f"encoder.layers.{i}." for i in range(layers_in_front(self.model.config))]
        return {n: p for n, p in named.items() if "embeddings." in n or any(key in n for key in layers)}

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture takes in the language model's sequence."""
        return image_tokens_of(self.model.config)

    @property
    def widths(self) -> dict[str, int]:
        """The last axis of what `see`, `project` and `attend` return, by the name of what they return."""
        config = self.model.config
        return {
            "features": config.vision_config.hidden_size,
            "tokens": config.text_config.hidden_size,
            "attention": config.text_config.num_attention_heads,
        }

    def see(self, pictures: Tensor) -> Tensor:
        """V: pictures [P, 3, H, W] -> features [P, F, vision width]; F is `features_of` the config.

        Only what lies in front of the feature layer is computed: not the layers behind it, the last norm, a head.
        """
        config, pictures = self.model.config, pictures.to(self.model.dtype)
        if not len(pictures):
            return pictures.new_zeros(0, features_of(config), config.vision_config.hidden_size)
        tower = _inside(self.model.model.vision_tower)
        layers = tower.encoder.layers[: layers_in_front(config)]
        features = tower.embeddings(pictures)
        if hasattr(tower, "pre_layrnorm"):
            features = tower.pre_layrnorm(features)
        # every patch sees every other; CLIP's layers take two masks and return a tuple before transformers 5
        masks = {name: None for name in signature(layers[0].forward).parameters if name.endswith("_mask")}
        with recomputed(layers if "vision" in self.recomputed else ()):
            for layer in layers:
                features = layer(features, **masks)
                features = features[0] if isinstance(features, tuple) else features
        return features[:, 1:] if config.vision_feature_select_strategy == "default" else features

    def sees_as(self, other: Llava) -> bool:
        """Whether both make the same features of a picture: the same tower, weight by weight, read at the same layer."""
        ours, theirs = (model.reached("vision") for model in (self, other))
        return (
            _seeing(self.model.config) == _seeing(other.model.config)
            and ours.keys() == theirs.keys()
            and all(torch.equal(ours[name], theirs[name]) for name in ours)
        )

    def project(self, features: Tensor) -> Tensor:
        """P: features [P, F, vision width] -> tokens [P, image_tokens, language width]."""
        return self.model.model.multi_modal_projector(features)

    def understand(self, batch: Batch, visual: Tensor, keep: Tensor) -> Tensor:
        """L but for its head: the batch's text with visual tokens in place of its image tokens -> [N, D] where `keep`."""
        embedded, reader = self._embed(batch, visual), self.model.model.language_model
        with recomputed(reader.layers if "language" in self.recomputed else ()):
            hidden = reader(
                inputs_embeds=embedded,
                attention_mask=_bias(batch.attention, embedded.dtype),
                position_ids=batch.position,
                use_cache=False,
            ).last_hidden_state
        return hidden[keep]

    @property
    def head(self) -> Tensor:
        """The weights [V, D] of L's head, which has no bias."""
        return self.model.lm_head.weight

    def speak(self, hidden: Tensor) -> Tensor:
        """L's head: last states [N, D] -> logits [N, V]."""
        return self.model.lm_head(hidden)

    def decode(self, batch: Batch, visual: Tensor, keep: Tensor) -> Tensor:
        """L: logits [N, V] where `keep`."""
        return self.speak(self.understand(batch, visual, keep))

    def attend(self, batch: Batch, visual: Tensor) -> Tensor:
        """L's first layer: how much each token's query attends to each image token, [P, T, image tokens, heads].

        Of the rows with a picture, in their order. Queries that are no text, or see no picture, are 0. No layer but
        the norm and the query and key of the first is computed (Qwen2's and Llama's are built alike).
        """
        pictured, reader = batch.image.any(1), self.model.model.language_model
        layer = reader.layers[0]
        hidden = layer.input_layernorm(self._embed(batch, visual)[pictured])
        query, key = (
            project(hidden).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *reader.rotary_emb(hidden, batch.position[pictured]))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = (query @ key.transpose(2, 3)).float() * layer.self_attn.scaling  # [P, heads, T, T]
        scores = scores.masked_fill(~_sight(batch.attention)[pictured], torch.finfo(torch.float32).min)
        image, text = batch.image[pictured], (batch.turn[pictured] >= 0) & ~batch.image[pictured]
        weights = scores.softmax(-1).permute(0, 3, 2, 1)[image]  # [P * image tokens, T, heads]
        weights = weights.unflatten(0, (len(image), self.image_tokens)).transpose(1, 2)
        return weights * text[:, :, None, None]

    def _embed(self, batch: Batch, visual: Tensor) -> Tensor:
        """[B, T, width]: the batch's tokens, visual ones in place of its image tokens."""
        embedded = self.model.get_input_embeddings()(batch.input_ids)
        return embedded.masked_scatter(batch.image[..., None], visual.to(embedded.dtype))


def _inside(tower: nn.Module) -> nn.Module:
    """The tower with the layers, which lie one module deeper before transformers 5.6."""
    return getattr(tower, "vision_model", tower)


def _seeing(config: LlavaConfig) -> tuple[Any, ...]:
    """What of a config says how features are made."""
    vision = config.vision_config.to_dict()
    built = {name: vision[name] for name in BUILT if name in vision}
    return vision["model_type"], built, layers_in_front(config), config.vision_feature_select_strategy


def _sight(attention: Tensor) -> Tensor:
    """[B, 1, T, T] bool, query by key, of either form of a batch's mask."""
    if attention.ndim == 4:
        return attention
    length = attention.shape[1]
    return attention[:, None, None] & attention.new_ones(length, length).tril()


def _bias(attention: Tensor, dtype: torch.dtype) -> Tensor:
    """A [B, 1, T, T] mask as the additive bias every attention implementation takes; [B, T] masks pass."""
    if attention.ndim == 2:
        return attention.long()
    return torch.zeros_like(attention, dtype=dtype).masked_fill(~attention, torch.finfo(dtype).min)
