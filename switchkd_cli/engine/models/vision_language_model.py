"""A transformers model as vision encoder V, projector P and language model L: the same code for every family."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel

from switchkd_cli.engine.batch import Batch, ImageInput, PerImage, together
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.lm_head import capped
from switchkd_cli.engine.models.checkpoint_files import FIELDS
from switchkd_cli.engine.models.layer_forwards import Offloaded, only_at, recompute_layers
from switchkd_cli.engine.models.low_rank import MARK
from switchkd_cli.engine.models.model_folder import save
from switchkd_cli.engine.models.seams import GRID, Seam, output_of, replaced
from switchkd_cli.engine.models.shape import output_widths

EAGER = {"_attn_implementation": "eager"}
"""Of L's config: the only implementation that returns attention weights."""
ABOVE = ("post_layernorm.", "head.", "layernorm.")
"""Of a tower, what comes behind its layers: where P reads one of these, it has no use."""

Shown = Sequence[tuple[Tensor, ImageInput]]
"""The visual tokens [M, width of L] of images, and their inputs."""


class ProjectedImage(NamedTuple):
    """A prepared image and its visual tokens [M, width of L]."""

    prepared: PreparedImage
    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + sum(value.nbytes for value in self.prepared.inputs.values())


class VisionLanguageModel(nn.Module):
    """A model as vision encoder V, projector P and language model L (head included), taken apart at the inputs' seam.

    `model` is a plain transformers model, so that a saved model loads without this package. The layers of the parts in
    `recomputed_parts` ("vision", "language") keep only their inputs for the backward pass, which computes them again.
    """

    def __init__(self, model: PreTrainedModel, inputs: InputProcessor) -> None:
        super().__init__()
        self.model: Any = model
        self.inputs = inputs
        self.seam: Seam = inputs.seam
        self.recomputed_parts: frozenset[str] = frozenset()

    @property
    def core(self) -> Any:
        """The model without its head."""
        return self.model.model

    @property
    def language(self) -> Any:
        return self.core.get_submodule(self.seam.language)

    @property
    def sharded(self) -> bool:
        """Whether the processes have L's layers in parts, and run them together; the first one may be whole."""
        return isinstance(self.language.layers[-1], FSDPModule)

    @property
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules of `vision`, `projector` and `language`, the names that a recipe's `train` accepts."""
        return {
            "vision": self.seam.vision(self.core),
            "projector": self.seam.projector(self.core),
            "language": (self.language, self.model.get_output_embeddings()),
        }

    def used_parameters(self, part: str) -> dict[str, nn.Parameter]:
        """Return the part's parameters that a forward pass uses, by name: training the part trains these.

        Where the projector reads one of the tower's layers, what follows it (later layers, the last norm, a pooling head) is
        never trained, nor is what a projector keeps of another model (`FrozenProjector`). Of a language part with adapters, these
        alone are trained.
        """
        unique = {id(p): (n, p) for module in self.parts[part] for n, p in module.named_parameters()}
        named = dict(unique.values())  # a tied head is counted once
        if part == "language" and (adapters := {name: p for name, p in named.items() if MARK in name}):
            return adapters
        count = self.seam.read_layers(self.model.config)
        if part != "vision" or count is None:
            return {name: p for name, p in named.items() if not name.startswith("frozen.")}
        later = tuple(f"{self.seam.layers}.{i}." for i in range(count, len(self.seam.vision_layers(self.core))))
        return {name: p for name, p in named.items() if not name.startswith((*later, *ABOVE))}

    @property
    def _in_token(self) -> int:
        """How many vectors of L's width a visual token has."""
        return self.seam.levels(self.model.config)

    @property
    def widths(self) -> dict[str, int]:
        """See `output_widths`."""
        return output_widths(self.model.config, self._in_token)

    @property
    def head(self) -> Tensor:
        """The weights [V, D] of L's head, which has no bias."""
        return self.model.get_output_embeddings().weight

    @property
    def cap(self) -> float | None:
        """The bound of L's logits, see `lm_head.capped`."""
        return getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)

    def blank_image(self) -> ImageInput:
        """Return an image without content. V runs on it where V is trained and a batch has no image."""
        return {name: value.to(self.model.device) for name, value in self.inputs.usual.inputs.items()}

    def encode(self, images: Sequence[ImageInput]) -> PerImage:
        """V: P images -> features [P, F, width of V], or P tensors [F_p, width of V]: see `Seam.see`."""
        if not images:
            return self._none("features")
        with recompute_layers(self.seam.vision_layers(self.core) if "vision" in self.recomputed_parts else ()):
            return self.seam.see(self.core, images)

    def project(self, features: PerImage, images: Sequence[ImageInput] = ()) -> PerImage:
        """P: the features of those images -> visual tokens [P, M, width of L], or P tensors [M_p, width of L]."""
        return self.seam.project(self.core, features, images) if len(features) else self._none("tokens")

    def _none(self, kind: str) -> Tensor:
        """Return the features or tokens of no image."""
        return torch.zeros(0, 1, self.widths[kind], dtype=self.model.dtype, device=self.model.device)

    def hidden_states(self, batch: Batch, tokens: PerImage, keep: Tensor) -> Tensor:
        """L without its head: text and visual tokens -> hidden states [N, D] at the N positions of `keep` [B, T]."""
        layers = self.language.layers
        recomputed = "language" in self.recomputed_parts or isinstance(layers[0], Offloaded)
        with only_at(keep, layers[-1]), recompute_layers(layers if recomputed else ()):
            hidden = self._read(batch, tokens).last_hidden_state[keep]
        return hidden if batch.images else _with_graph_of(tokens, hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """L's head: hidden states [N, D] -> logits [N, V]."""
        return capped(self.model.get_output_embeddings()(hidden), self.cap)

    def _read(self, batch: Batch, tokens: PerImage, **options: Any) -> Any:
        """L without its head: return transformers' output for a batch."""
        embeddings = self.model.get_input_embeddings()
        # sharded: the backward pass must go through the same layers in every process, else the others would wait
        through = not batch.images and (self.sharded or hasattr(embeddings.weight, "ds_id"))
        with embeddings.register_forward_hook(lambda *of: _with_graph_of(tokens, of[-1])) if through else nullcontext():
            return self.core(
                input_ids=batch.input_ids,
                attention_mask=_bias(batch.attention, embeddings.weight.dtype),
                position_ids=batch.position,
                use_cache=False,
                **self._given(batch.image, tokens if batch.images else ()),
                **options,
            )

    def _given(self, image: Tensor, tokens: PerImage) -> dict[str, Any]:
        """Return what L is given of the images. `image`: [B, T] bool, visual tokens."""
        given: dict[str, Any] = {self.seam.types: image.long()} if self.seam.types else {}
        if len(tokens):
            given["mm_encoder_outputs"] = {"image": self.seam.encoded(tokens, self._in_token)}
        return given

    def attention(self, batch: Batch, tokens: PerImage) -> PerImage:
        """L's first layer: how much each token's query attends to each visual token, [P, T, M, heads].

        Queries that are not text, or don't see the image, get 0. Nothing behind the first layer's attention is computed.
        """
        with replaced(self.language.config, EAGER):
            output = output_of(self.language.layers[0].self_attn, self._read, batch, tokens)
        return self._to_images(output[1], batch, tokens)

    def attentions(self, batch: Batch, tokens: PerImage) -> PerImage:
        """Every layer of L: as `attention`, the mean over heads, [P, T, M, layers]. All layers' [T, T] exist at a time."""
        with replaced(self.language.config, EAGER):
            output = self._read(batch, tokens, output_attentions=True)
        return self._to_images(torch.stack([of_layer.mean(1) for of_layer in output.attentions], 1), batch, tokens)

    def _to_images(self, attention: Tensor, batch: Batch, tokens: PerImage) -> PerImage:
        """Return what text gives to each image, [P, T, M, K], of attention [B, K, queries, keys]."""
        weights = attention.float().permute(0, 3, 2, 1)
        if not batch.images:
            return _with_graph_of(tokens, weights[:0, :1].transpose(1, 2))
        of_images = weights[batch.image].split([len(each) for each in tokens])
        text = ((batch.turn >= 0) & ~batch.image)[batch.image_rows]
        return together([w.transpose(0, 1) * t[:, None, None] for w, t in zip(of_images, text, strict=True)])

    def same_vision(self, other: Self) -> bool:
        """Return whether both have the same tower, weight by weight, without dropout, and read it at the same layers."""
        ours, theirs = (model.used_parameters("vision") for model in (self, other))
        alike = _feature_settings(self) == _feature_settings(other) and ours.keys() == theirs.keys()
        drops = any(rate for name, rate in self.model.config.vision_config.to_dict().items() if "drop" in name)
        return alike and not drops and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def generate(
        self, texts: Sequence[str], images: Sequence[Sequence[ProjectedImage]], generation: GenerationConfig
    ) -> tuple[list[int], Tensor]:
        """Answer B texts, each with its images. Returns the texts' lengths in tokens and the new ids [B, <= limit]."""
        of_images = [[image.prepared.text for image in each] for each in images]
        encoded = self.inputs.tokenized(texts, of_images).to(self.model.device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        shown = [(image.tokens, image.prepared.inputs) for each in images for image in each]
        return mask.sum(1).tolist(), self.continued(ids, mask, shown, generation)

    def continued(self, ids: Tensor, mask: Tensor, images: Shown, how: GenerationConfig, **options: Any) -> Tensor:
        """Continue B texts of tokens [B, T], padded on the left, and return the new ids [B, <= limit].

        `images` are in the order of the texts, `options` of transformers' `generate`. Of the checkpoint's own generation
        config, which `generate` would fill `how` up with, nothing is used: tokens follow from the model's logits alone.
        """
        given = self._given(ids == self.inputs.image_token, tuple(tokens for tokens, _ in images))
        if images and GRID in images[0][1]:  # from which transformers counts L's positions
            given[GRID] = torch.cat([inputs[GRID] for _, inputs in images]).to(ids.device)
        with replaced(self.model, {"generation_config": how}):
            new = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=how, **options, **given)
        return new[:, ids.shape[1] :]

    save = save


def _with_graph_of(tokens: PerImage, values: Tensor) -> Tensor:
    """Return values that a blank image's tokens don't change: so these have a gradient of zero, not none."""
    return values + 0 * sum(of_image.sum() for of_image in tokens)


def _feature_settings(model: VisionLanguageModel) -> tuple[Any, ...]:
    """Return the settings of a config on which the features depend."""
    config = model.model.config
    vision = config.vision_config.to_dict()
    fields = {name: vision[name] for name in FIELDS["tower"] if name in vision}
    select = getattr(config, "vision_feature_select_strategy", None)
    return vision["model_type"], fields, model.seam.read_layers(config), select


def _bias(attention: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a [B, 1, T, T] mask as an additive bias, which every attention implementation takes; [B, T] as integers."""
    if attention.ndim == 2:
        return attention.long()
    return torch.zeros_like(attention, dtype=dtype).masked_fill(~attention, torch.finfo(dtype).min)
