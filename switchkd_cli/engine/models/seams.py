"""Where a family's vision tower ends and its projector begins, inside transformers' own `get_image_features`.

transformers has the other seam itself: `mm_encoder_outputs={"image": ...}` of a model's forward pass and of `generate` takes
what `get_image_features` returns. So L is the same code for every family, and a family says only where V ends:

| kind   | P's modules are | V alone                             | P alone                                       |
|--------|-----------------|-------------------------------------|-----------------------------------------------|
| Tower  | next to V's     | the tower, and nothing behind it    | with a tower that gives features it was given |
| Merged | among V's       | with P's modules passing them along | P's modules themselves                        |

A feature is what P reads at one place: where it reads several layers (Qwen3-VL's DeepStack), theirs side by side. In the same
way a visual token is all that L takes at one place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from switchkd_cli.engine.batch import ImageInput, PerImage, flat, together
from switchkd_cli.engine.models.shape import dropped_features, layers_before_features, patch_grid

LEAST = 1e-7  # half precision has nothing smaller
GRID = "image_grid_thw"
"""The tensor of an image that says how many of its patches are above and next to one another, where that varies."""

Layout = tuple[int, int, int]
"""Rows and columns of the features of a whole image, which stand square by square, and the side of such a square."""


@dataclass(frozen=True)
class _Seam:
    """Names of V, P and L below a model's `model`.

    `layers`: V's, below the tower. `types`: the argument by which L is told where visual tokens are. `of_row`: a tensor with
    one value for all images of an example, which are then prepared together. `places`: the tensor of the places of an image's
    patches, -1 in padding, where V itself pools patches and gives features without padding. `stacks`: `get_image_features` returns one
    tensor, not a list. `whole`: which of an image's tiles shows all of it. `at_layer`: P reads the layer of V that
    `vision_feature_layer` names, else V's output. `square`: every tile gives the same number of visual tokens, from one grid of
    features with equal sides.
    """

    tower: str
    layers: str
    connects: tuple[str, ...]
    language: str = "language_model"
    types: str = ""
    of_row: str = ""
    places: str = ""
    stacks: bool = False
    whole: int = -1
    at_layer: bool = False
    square: bool = True

    def layout(self, config: PretrainedConfig, image: ImageInput) -> Layout:
        """Return how the features of the image as a whole stand."""
        side = patch_grid(config)[1]
        return side, side, 1

    def levels(self, config: PretrainedConfig) -> int:
        """Return how many layers of V the projector reads."""
        return 1

    def read_layers(self, config: PretrainedConfig) -> int | None:
        """Return how many of V's layers come before its features; None: all, and what follows them."""
        return layers_before_features(config) if self.at_layer else None

    def vision_layers(self, core: Any) -> nn.ModuleList:
        return core.get_submodule(f"{self.tower}.{self.layers}")

    def vision(self, core: Any) -> tuple[nn.Module, ...]:
        """Return V's modules."""
        return (core.get_submodule(self.tower),)

    def projector(self, core: Any) -> tuple[nn.Module, ...]:
        """Return P's modules; a parameter among them is a module too."""
        found = [attrgetter(name)(core) for name in self.connects]
        return tuple(nn.ParameterList([each]) if isinstance(each, nn.Parameter) else each for each in found)

    def encoded(self, tokens: PerImage, levels: int) -> ModelOutput:
        """Return visual tokens as what transformers' language side takes of `get_image_features`."""
        first, *deeper = flat(tokens).chunk(levels, -1)
        output = BaseModelOutputWithPooling(pooler_output=first[None] if self.stacks else [first])
        if deeper:
            output["deepstack_features"] = [[level] for level in deeper]
        return output

    def of_images(self, prepared: Mapping[str, Tensor], count: int) -> Sequence[ImageInput]:
        """Return the tensors of each image, tiles first, from what the processor gives for one image or an example's."""
        images = [{n: v[i : i + 1] if len(v) == count else v for n, v in prepared.items()} for i in range(count)]
        if prepared["pixel_values"].ndim == 5:  # [images, tiles, 3, H, W]
            images = [{n: v.transpose(0, 1) if v.ndim > 3 else v for n, v in image.items()} for image in images]
        return images

    def visual(self, images: Sequence[ImageInput], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the arguments of `get_image_features` for images one after another."""
        join = torch.stack if images[0]["pixel_values"].ndim == 3 and not self.places else torch.cat
        joined = {name: join([image[name] for image in images]) for name in images[0]}
        if self.of_row:
            counts, at = joined[self.of_row].tolist(), 0
            last_of_rows = [(at := at + counts[at]) - 1 for _ in counts if at < len(counts)]
            joined[self.of_row] = joined[self.of_row][last_of_rows]
        pixels = joined["pixel_values"]
        if pixels.ndim == 5:  # transformers takes tiles of zeros for padding
            joined["pixel_values"] = pixels + LEAST * (pixels == 0).flatten(1).all(1).view(-1, 1, 1, 1, 1)
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in joined.items()}


@dataclass(frozen=True)
class Tower(_Seam):
    """V is a module of its own."""

    tower: str = "vision_tower"
    layers: str = "encoder.layers"
    connects: tuple[str, ...] = ("multi_modal_projector",)

    def see(self, core: Any, images: Sequence[ImageInput]) -> PerImage:
        """V: P >= 1 images -> features [P, F, width of V], or P tensors [F_p, width of V]."""
        tower, visual = core.get_submodule(self.tower), self.visual(images, core.dtype)
        if count := self.read_layers(core.config):
            parent, _, name = self.layers.rpartition(".")
            first_layers = replaced(tower.get_submodule(parent), {name: self.vision_layers(core)[:count]})
            with first_layers, replaced(tower, {"post_layernorm": nn.Identity()}):
                features = tower(visual["pixel_values"].flatten(0, -4)).last_hidden_state
        else:
            features = output_of(tower, core.get_image_features, **visual).last_hidden_state
        return _grouped(features[:, dropped_features(core.config) :], self._counts(core, images))

    def project(self, core: Any, features: PerImage, images: Sequence[ImageInput]) -> PerImage:
        """P: features of P >= 1 images -> visual tokens [P, M, width of L], or P tensors [M_p, width of L]."""
        tiles, values = self._counts(core, images) or [1] * len(features), _as_read(flat(features), core)
        if not self.places:
            values = values.unflatten(0, (sum(tiles), -1))
            # with a place for the one that transformers drops
            values = pad(values, (0, 0, dropped_features(core.config), 0))
        every_layer = (values,) * (len(self.vision_layers(core)) + 1)
        visual = self.visual(images, values.dtype) if images else {"pixel_values": values}

        def replay(*_: Any, **__: Any) -> ModelOutput:
            return BaseModelOutputWithPooling(last_hidden_state=values, hidden_states=every_layer)

        with replaced(core, {self.tower: _Instead(replay)}):
            tokens = core.get_image_features(**visual, return_dict=True).pooler_output
        if isinstance(tokens, Tensor):
            return _grouped(tokens, tiles)
        if len(tokens) > len(tiles):  # one for each tile
            rest = iter(tokens)
            tokens = [torch.cat([next(rest) for _ in range(count)]) for count in tiles]
        return together(tokens)

    def _counts(self, core: Any, images: Sequence[ImageInput]) -> list[int]:
        """Return how many tiles each image has (one without an axis for them is one tile), or features where V pools."""
        if self.places:
            pooled = core.config.vision_config.pooling_kernel_size**2
            return [int((image[self.places] != -1).all(-1).sum()) // pooled for image in images]
        return [1 if image["pixel_values"].ndim == 3 else len(image["pixel_values"]) for image in images]


@dataclass(frozen=True)
class Merged(_Seam):
    """P's modules are among V's: one that merges neighbouring patches, then a list with one for each earlier layer read."""

    tower: str = "visual"
    layers: str = "blocks"
    connects: tuple[str, ...] = ("visual.merger",)
    types: str = "mm_token_type_ids"
    square: bool = False

    def layout(self, config: PretrainedConfig, image: ImageInput) -> Layout:
        _, rows, columns = image[GRID].flatten().tolist()
        return rows, columns, config.vision_config.spatial_merge_size

    def levels(self, config: PretrainedConfig) -> int:
        return 1 + (len(self.connects) > 1 and len(config.vision_config.deepstack_visual_indexes))

    def vision(self, core: Any) -> tuple[nn.Module, ...]:
        mergers = self.projector(core)
        return tuple(child for child in core.get_submodule(self.tower).children() if child not in mergers)

    def see(self, core: Any, images: Sequence[ImageInput]) -> PerImage:
        """V: P >= 1 images -> features [P, F, width of V x levels], or P tensors [F_p, ...]."""
        tower, levels = core.get_submodule(self.tower), self.levels(core.config)
        count = tower.spatial_merge_size**2
        unmerged = _Instead(lambda features: features.reshape(-1, count * features.shape[-1]))
        names = [name.rpartition(".")[2] for name in self.connects]
        with replaced(tower, dict(zip(names, (unmerged, nn.ModuleList([unmerged] * (levels - 1))), strict=False))):
            output = core.get_image_features(**self.visual(images, core.dtype), return_dict=True)
        read = [output.pooler_output, *(output.get("deepstack_features") or ())]
        apart = [torch.cat(list(level)).unflatten(-1, (count, -1)).flatten(0, 1) for level in read]
        return _grouped(torch.cat(apart, -1), [int(image[GRID].prod()) for image in images])

    def project(self, core: Any, features: PerImage, images: Sequence[ImageInput]) -> PerImage:
        """P: features of P >= 1 images -> visual tokens [P, M, width of L x levels], or P tensors [M_p, ...]."""
        merger, *deeper = self.projector(core)
        mergers = [merger, *(each for modules in deeper for each in modules.children())]
        levels = _as_read(flat(features), core).chunk(len(mergers), -1)
        tokens = torch.cat([merge(level.contiguous()) for merge, level in zip(mergers, levels, strict=True)], -1)
        count = core.get_submodule(self.tower).spatial_merge_size ** 2
        return _grouped(tokens, [len(each) // count for each in features])


Seam = Tower | Merged


class _Enough(Exception):
    """Ends a forward pass where nothing more is needed of it, and carries the last output as its argument."""


def output_of(module: nn.Module, run: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return what a module gives in a call of `run`, of which nothing behind that is computed."""

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        raise _Enough(output)

    with module.register_forward_hook(stop):
        try:
            run(*arguments, **named)
        except _Enough as enough:
            return enough.args[0]


class _Instead(nn.Module):
    """Computes a function in a module's place."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


@contextmanager
def replaced(owner: Any, others: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, these attributes of the owner (modules of a module, too) have other values."""
    before = {name: getattr(owner, name) for name in others}
    try:
        for name, other in others.items():
            setattr(owner, name, other)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _as_read(features: Tensor, core: Any) -> Tensor:
    """Return features in the dtype of the projector, which may be another model's: autocast would see to it itself."""
    return features if torch.is_autocast_enabled(features.device.type) else features.to(core.dtype)


def _grouped(values: Tensor, counts: Sequence[int]) -> PerImage:
    """Return the values of each image, [P, F, D] or P tensors [F_p, D], of values [sum of counts, D] or [..., F, D]."""
    if len(set(counts)) == 1:
        return values.unflatten(0, (len(counts), -1)).flatten(1, -2)
    return tuple(each.flatten(0, -2) for each in values.split(list(counts)))
