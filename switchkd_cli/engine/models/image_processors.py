"""Image processors: read the one that is stored with a vision tower, or make the one that its kind is published with."""

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

from switchkd_cli.engine.hub import NO_CODE, Stored, as_user_error

PIL = {"backend": "pil"}  # the other backend needs torchvision

FILE = "preprocessor_config.json"


def read_image_processor(stored: Stored):
    """Return the image processor that is stored in a folder."""
    with as_user_error(f"{stored}: no readable {FILE}"):
        return AutoImageProcessor.from_pretrained(stored.folder, **PIL, **NO_CODE)


def default_image_processor(vision: PretrainedConfig):
    """Return the image processor that towers of this kind are published with, at the config's image size.

    SigLIP: resize to a square, mean and standard deviation 0.5. CLIP: resize the short side, crop the centre, CLIP's
    own mean and standard deviation.
    """
    side = vision.image_size
    square = {"height": side, "width": side}
    if vision.model_type == "clip_vision_model":
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    return SiglipImageProcessorPil(size=square, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def with_square_padding(processor):
    """Return the image processor that first pads images to squares with the mean colour, then does as `processor`."""
    size = processor.size if processor.size.get("shortest_edge") else {"shortest_edge": processor.size["height"]}
    return LlavaImageProcessorPil(
        do_pad=True,
        size=dict(size),
        crop_size=dict(getattr(processor, "crop_size", None) or processor.size),
        resample=processor.resample,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )


def prepared_pixels(image_processor: Callable[..., Mapping[str, Tensor]], images: Sequence[Image]) -> Tensor:
    """Return images as pixel values for the vision tower, [images, 3, H, W].

    The layout (channels last) is given: before transformers 5.6 a side of 1 or 3 pixels could be read as the channels.
    """
    return image_processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
