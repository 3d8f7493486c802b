"""LLaVA as V, P and L: a wrapper of transformers' own LlavaForConditionalGeneration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from switchkd_cli.engine.batch import Batch, ImageInput
from switchkd_cli.engine.models import llava_save
from switchkd_cli.engine.models.checkpoint_files import FIELDS
from switchkd_cli.engine.models.family import InputProcessor, PreparedImage, ProjectedImage, VisionLanguageModel
from switchkd_cli.engine.models.image_processors import prepared_pixels
from switchkd_cli.engine.models.llava_config import features_of, layers_before_features
from switchkd_cli.engine.models.recompute import recompute_layers
from switchkd_cli.engine.per_image import PerImage, flat


class LlavaInputs(InputProcessor):
    """Square images of one size, each of which takes `image_tokens` visual tokens."""

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        super().__init__(processor)
        self.image_tokens = image_tokens

    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        """Return `pixel_values` [3, H, W] of each image."""
        pixels = prepared_pixels(self.processor.image_processor, list(images))
        return [PreparedImage({"pixel_values": each}, self.placeholder_ids()) for each in pixels]

    def placeholder_ids(self) -> Sequence[int]:
        return [self.image_token] * self.image_tokens


class Llava(VisionLanguageModel):
    """transformers' LlavaForConditionalGeneration, or LDPNetV2's, as V, P and L."""

    model: LlavaForConditionalGeneration
    inputs: LlavaInputs

    @property
    def processor(self) -> LlavaProcessor:
        """transformers' own processor, which is saved with the model."""
        return self.inputs.processor

    @property
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules of each name that a recipe's `train` accepts."""
        core = self.model.model
        return {
            "vision": (core.vision_tower,),
            "projector": (core.multi_modal_projector,),
            "language": (core.language_model, self.model.lm_head),
        }

    def used_parameters(self, part: str) -> dict[str, nn.Parameter]:
        """Return the part's parameters that a forward pass uses, by name.

        The tower's features are taken at `vision_feature_layer`; what follows it (later layers, the last norm, a pooling
        head) is not computed, so it is never trained.
        """
        unique = {id(p): (n, p) for module in self.parts[part] for n, p in module.named_parameters()}
        named = dict(unique.values())  # a tied head is counted once
        if part != "vision":
            return named
        layers = [f"encoder.layers.{i}." for i in range(layers_before_features(self.model.config))]
        return {n: p for n, p in named.items() if "embeddings." in n or any(key in n for key in layers)}

    @property
    def widths(self) -> dict[str, int]:
        config = self.model.config
        return {
            "features": config.vision_config.hidden_size,
            "tokens": config.text_config.hidden_size,
            "attention": config.text_config.num_attention_heads,
        }

    def blank_image(self) -> ImageInput:
        side = self.model.config.vision_config.image_size
        return {"pixel_values": torch.zeros(3, side, side, device=self.model.device)}

    def encode(self, images: Sequence[ImageInput]) -> Tensor:
        """V: P images -> features [P, F, width of V]; F is `features_of` the config.

        The layers after the feature layer, the last norm and the pooling head are not computed.
        """
        config = self.model.config
        if not images:
            shape = (0, features_of(config), config.vision_config.hidden_size)
            return torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)
        pixels = torch.stack([image["pixel_values"] for image in images]).to(self.model.dtype)
        tower = self.model.model.vision_tower
        layers = tower.encoder.layers[: layers_before_features(config)]
        features = tower.embeddings(pixels)
        if hasattr(tower, "pre_layrnorm"):
            features = tower.pre_layrnorm(features)
        with recompute_layers(layers if "vision" in self.recomputed_parts else ()):
            for layer in layers:
                features = layer(features, attention_mask=None)  # every patch sees every other
        return features[:, 1:] if config.vision_feature_select_strategy == "default" else features

    def same_vision(self, other: VisionLanguageModel) -> bool:
        """Return whether both have the same tower, weight by weight, and read it at the same layer."""
        ours, theirs = (model.used_parameters("vision") for model in (self, other))
        return (
            isinstance(other, Llava)
            and _feature_settings(self.model.config) == _feature_settings(other.model.config)
            and ours.keys() == theirs.keys()
            and all(torch.equal(ours[name], theirs[name]) for name in ours)
        )

    def project(self, features: PerImage, images: Sequence[ImageInput] = ()) -> PerImage:
        """P: features [P, F, width of V] -> visual tokens [P, M, width of L]; `images` is not used."""
        return self.model.model.multi_modal_projector(features)

    def hidden_states(self, batch: Batch, tokens: PerImage, keep: Tensor) -> Tensor:
        embedded, language = self._embed(batch, tokens), self.model.model.language_model
        with recompute_layers(language.layers if "language" in self.recomputed_parts else ()):
            hidden = language(
                inputs_embeds=embedded,
                attention_mask=_bias(batch.attention, embedded.dtype),
                position_ids=batch.position,
                use_cache=False,
            ).last_hidden_state
        return hidden[keep]

    def attention(self, batch: Batch, tokens: PerImage) -> PerImage:
        """L's first layer: how much each token's query attends to each visual token, [P, T, M, heads].

        Queries that are not text, or don't see the image, get 0. Only the first layer's norm, query and key are computed
        (Qwen2 and Llama have the same ones).
        """
        has_image, language = batch.image.any(1), self.model.model.language_model
        layer = language.layers[0]
        hidden = layer.input_layernorm(self._embed(batch, tokens)[has_image])
        query, key = (
            project(hidden).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *language.rotary_emb(hidden, batch.position[has_image]))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = (query @ key.transpose(2, 3)).float() * layer.self_attn.scaling  # [P, heads, T, T]
        scores = scores.masked_fill(~_pair_mask(batch.attention)[has_image], torch.finfo(torch.float32).min)
        image, text = batch.image[has_image], (batch.turn[has_image] >= 0) & ~batch.image[has_image]
        weights = scores.softmax(-1).permute(0, 3, 2, 1)[image]  # [P * M, T, heads]
        weights = weights.unflatten(0, (len(batch.images), self.inputs.image_tokens)).transpose(1, 2)
        owners = torch.unique_consecutive(batch.image_rows, return_inverse=True)[1]
        return weights * text[owners, :, None, None]

    def mean_attention(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.model.set_attn_implementation("eager")  # the only implementation that returns attention weights
        output = self.model.model.language_model(
            inputs_embeds=self._embed(batch, self.project(self.encode(batch.images))),
            attention_mask=batch.attention.long(),  # one conversation without independent turns
            position_ids=batch.position,
            use_cache=False,
            output_attentions=True,
        )
        return torch.stack(output.attentions).mean((0, 2))[0], self.logits(output.last_hidden_state[0])

    def generate(
        self, texts: Sequence[str], images: Sequence[Sequence[ProjectedImage]], generation: GenerationConfig
    ) -> tuple[list[int], Tensor]:
        tokenizer, mark = self.inputs.tokenizer, self.inputs.image_text
        tokens = [image.tokens for each in images for image in each]
        if tokens:
            texts = [text.replace(mark, mark * len(tokens[0])) for text in texts]
        has_bos = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
        encoded = tokenizer(
            list(texts), padding=True, padding_side="left", add_special_tokens=not has_bos, return_tensors="pt"
        ).to(self.model.device)
        embedded = self.model.get_input_embeddings()(encoded["input_ids"])
        if tokens:
            places = (encoded["input_ids"] == self.model.config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(places, torch.cat(tokens).to(embedded.dtype))
        new_ids = self.model.generate(
            inputs_embeds=embedded, attention_mask=encoded["attention_mask"], generation_config=generation
        )
        return encoded["attention_mask"].sum(1).tolist(), new_ids

    save = llava_save.save

    def _embed(self, batch: Batch, tokens: PerImage) -> Tensor:
        """Return input embeddings [B, T, width]: the batch's text, with the visual tokens in their places."""
        embedded = self.model.get_input_embeddings()(batch.input_ids)
        return embedded.masked_scatter(batch.image[..., None], flat(tokens).to(embedded.dtype))


def _feature_settings(config: LlavaConfig) -> tuple[Any, ...]:
    """Return the settings of a config on which the features depend."""
    vision = config.vision_config.to_dict()
    fields = {name: vision[name] for name in FIELDS["tower"] if name in vision}
    return vision["model_type"], fields, layers_before_features(config), config.vision_feature_select_strategy


def _pair_mask(attention: Tensor) -> Tensor:
    """Return the mask [B, 1, T, T] bool, query by key, from either form of a batch's mask."""
    if attention.ndim == 4:
        return attention
    length = attention.shape[1]
    return attention[:, None, None] & attention.new_ones(length, length).tril()


def _bias(attention: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a [B, 1, T, T] mask as an additive bias, which every attention implementation takes; [B, T] as integers."""
    if attention.ndim == 2:
        return attention.long()
    return torch.zeros_like(attention, dtype=dtype).masked_fill(~attention, torch.finfo(dtype).min)
