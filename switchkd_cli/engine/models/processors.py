"""Processors: read transformers' own of images and text without what needs torchvision; make and compare those of images."""

import inspect
from typing import Any

import numpy as np
import transformers
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.engine.models.checkpoint_files import FIELDS
from switchkd_cli.engine.models.tokenizers import own_template, with_padding
from switchkd_cli.errors import UserError

PIL = {"backend": "pil"}  # the other backend needs torchvision

FILE = "preprocessor_config.json"
PROBES = (96, 48), (48, 96)  # pixels of a wide and of a tall image
NEAR, EQUAL = 0.05, 1e-3
"""Shares of an image's range of values. Another resampling differs by 0.01; padding, cropping, scaling by 0.25 or more."""


def read_image_processor(checkpoint: CheckpointFolder):
    """Return the image processor that is stored in a folder."""
    with as_user_error(f"{checkpoint}: no readable {FILE}"):
        return transformers.AutoImageProcessor.from_pretrained(checkpoint.folder, **PIL, **NO_CODE)


def default_image_processor(vision: PretrainedConfig):
    """Return the image processor that towers of this kind are published with, at the config's image size.

    SigLIP: resize to a square, mean and standard deviation 0.5. CLIP: resize the short side, crop the centre, CLIP's
    own mean and standard deviation.
    """
    side = vision.image_size
    square = {"height": side, "width": side}
    if vision.model_type == "clip_vision_model":
        return transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    return transformers.SiglipImageProcessorPil(
        size=square, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def with_square_padding(processor):
    """Return the image processor that first pads images to squares with the mean colour, then does as `processor`."""
    size = processor.size if processor.size.get("shortest_edge") else {"shortest_edge": processor.size["height"]}
    cut = getattr(processor, "crop_size", None) or processor.size
    kept = {name: getattr(processor, name) for name in ("resample", "image_mean", "image_std")}
    return transformers.LlavaImageProcessorPil(do_pad=True, size=dict(size), crop_size=dict(cut), **kept)


def probes() -> list[Image.Image]:
    """Return a wide and a tall test image.

    They are colour gradients, so that each place has its own colour: padding, cropping or squashing shows clearly,
    another resampling hardly at all.
    """
    images = []
    for width, height in PROBES:
        across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        images.append(Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)))
    return images


def prepared_probes(image_processor) -> Tensor:
    """Return the `probes`, prepared by an image processor, [2, 3, H, W].

    Raises UserError for a processor that fails, or makes images of a size that no tower takes, or values that are not
    finite.
    """
    most = FIELDS["limits"]["image_size"]
    with as_user_error("the image processor can't prepare an image"), np.errstate(all="ignore"):
        for size in (image_processor.size, getattr(image_processor, "crop_size", None)):
            sides = {name: side for name, side in dict(size or {}).items() if side is not None}
            if not all(1 <= side <= most for side in sides.values()):
                raise UserError(f"the image processor makes images of {sides}, {most} is the most")
        pixels = image_processor(probes(), return_tensors="pt")["pixel_values"]
    if not pixels.isfinite().all():
        mean, std = normalisation(image_processor)
        raise UserError(f"the image processor makes values that are not finite (mean {mean}, std {std})")
    return pixels


def normalisation(image_processor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel."""
    return tuple(image_processor.image_mean or ()), tuple(image_processor.image_std or ())


VIDEO = "video_preprocessor_config.json"  # where older releases keep a processor's part for videos


class _Unread(dict):
    """The settings of a part for videos or sound, which is saved again as it was."""

    __getattr__ = dict.get


def read_processor(checkpoint: CheckpointFolder, model_type: str) -> ProcessorMixin:
    """Return a folder's processor, of transformers' class for this type of model. Raises UserError where it can't be read.

    Its parts for videos and sound are left as settings: AutoProcessor would refuse them where torchvision isn't installed.
    """
    with as_user_error(f"{checkpoint}: no readable processor"):
        kind: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
        fields = kind.get_processor_dict(checkpoint.folder, **NO_CODE)[0]
        if checkpoint.has(VIDEO):
            fields.setdefault("video_processor", checkpoint.json(VIDEO))
        given = {name: fields[name] for name in inspect.signature(kind.__init__).parameters if name in fields}
        given |= {part: _Unread(given.get(part) or {}) for part in kind.get_attributes()}
        given["tokenizer"] = with_padding(transformers.AutoTokenizer.from_pretrained(checkpoint.folder, **NO_CODE))
        given["image_processor"] = transformers.AutoImageProcessor.from_pretrained(checkpoint.folder, **PIL, **NO_CODE)
        processor = kind.__new__(kind)
        processor.check_argument_for_proper_class = lambda part, value: None  # it knows no settings
        kind.__init__(processor, **given)
        del processor.check_argument_for_proper_class
        processor.chat_template = own_template(processor, processor.tokenizer)
    return processor
