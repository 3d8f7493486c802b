"""Image processors: the one that is stored with a vision tower, or the one that its kind is published with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from PIL.Image import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    PretrainedConfig,
    SiglipImageProcessorPil,
)

from switchkd_cli.engine.hub import NO_CODE, Stored, explained

PIL = {"backend": "pil"}  # the other backend needs torchvision

FILE = "preprocessor_config.json"


def read_pictures(stored: Stored):
    """The image processor of a folder that has one."""
    with explained(f"{stored}: no readable {FILE}"):
        return AutoImageProcessor.from_pretrained(stored.folder, **PIL, **NO_CODE)


def usual_pictures(vision: PretrainedConfig):
    """The published processing of the config's kind of tower, at the config's own size.

    SigLIP: resized to a square, mean and deviation 0.5. CLIP: the short side resized, the middle cut out, CLIP's
    own mean and deviation.
    """
    side = vision.image_size
    square = {"height": side, "width": side}
    if vision.model_type == "clip_vision_model":
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    return SiglipImageProcessorPil(size=square, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def padded(usual):
    """The same processing of pictures that are first padded to squares with the mean colour."""
    size = usual.size if usual.size.get("shortest_edge") else {"shortest_edge": usual.size["height"]}
    return LlavaImageProcessorPil(
        do_pad=True,
        size=dict(size),
        crop_size=dict(getattr(usual, "crop_size", None) or usual.size),
        resample=usual.resample,
        image_mean=usual.image_mean,
        image_std=usual.image_std,
    )


def prepared_pixels(image_processor: Callable[..., Mapping[str, Tensor]], images: Sequence[Image]) -> Tensor:
    """Images as the tower takes them, [images, 3, H, W].

    Colours are said to come last: before transformers 5.6 a side of 1 or 3 pixels could be taken for them.
    """
    return image_processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
