"""Check that a LLaVA model's parts fit together, and that two models fit for the switch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.engine.models.family import Blueprint, Difference
from switchkd_cli.engine.models.image_processors import prepared_pixels
from switchkd_cli.engine.models.llava_config import features_of, image_tokens_of
from switchkd_cli.engine.models.tokenizers import IMAGE
from switchkd_cli.errors import UserError

if TYPE_CHECKING:
    from switchkd_cli.engine.models.llava import LlavaBlueprint

LARGEST = 1 << 12  # pixels of a side, as in config_limits.py
PROBES = (96, 48), (48, 96)  # pixels of a wide and of a tall image
NEAR, EQUAL = 0.05, 1e-3
"""Shares of an image's range of values. Another resampling differs by 0.01; padding, cropping, scaling by 0.25 or more."""
PROCESSOR_FIELDS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)

FAMILY_HINT = "the switch needs two models of one family"
TOWERS_HINT = (
    "the switch feeds the student's visual features to the teacher's projector: give the student a tower of the "
    "teacher's build (student.vision)"
)
SELECT_HINT = "let both keep or both drop the first feature (student.feature_select)"
PROJECTOR_HINT = "give the student the teacher's kind of projector (student.projector)"
LAYER_HINT = "read both towers at one layer (student.feature_layer)"
IMAGES_HINT = (
    "both models see the same images: prepare them as the teacher does (student.image_processor=..., the teacher's "
    "checkpoint)"
)


def vision_differences(teacher: LlavaBlueprint, student: Blueprint) -> Iterator[Difference]:
    """Yield each property in which the two models' vision differs, with a hint.

    Every tower of the family reads its grid row by row, so equal grids and selections give features in the same order.
    """
    if not isinstance(student, type(teacher)):
        yield (
            f"teacher: it is of another family ({teacher.config.model_type}) than the student's ({student.config.model_type})",
            FAMILY_HINT,
        )
        return
    for name, value_of, hint in (
        ("vision width", lambda m: m.config.vision_config.hidden_size, TOWERS_HINT),
        ("image size", lambda m: m.config.vision_config.image_size, TOWERS_HINT),
        ("patch grid", lambda m: f"{_grid(m)} x {_grid(m)}", TOWERS_HINT),
        ("feature count", lambda m: features_of(m.config), SELECT_HINT),
        ("image token count", lambda m: image_tokens_of(m.config), PROJECTOR_HINT),
        ("image normalisation (mean, std)", _normalisation, IMAGES_HINT),
    ):
        ours, theirs = value_of(student), value_of(teacher)
        if ours != theirs:
            yield f"teacher: {name} is {theirs}, the student's is {ours}", hint
    if _normalisation(student) == _normalisation(teacher):
        apart, settings = _preparation_difference(student, teacher)
        if apart > NEAR:
            yield f"teacher: images are prepared differently ({apart:.0%} apart): {settings}", IMAGES_HINT


def _preparation_difference(student: Blueprint, teacher: Blueprint) -> tuple[float, str]:
    """Return the largest difference between the images of both, as a share of their range, and the settings that differ.

    0 where the sizes differ: `vision_differences` reports these.
    """
    ours, theirs = (_pixels(model) for model in (student, teacher))
    apart = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else 0.0
    apart /= (ours.max() - ours.min()).item() or 1.0
    if apart < EQUAL:
        return 0.0, ""
    teachers, students = (_settings(model) for model in (teacher, student))
    differences = [
        f"{name} is {teachers[name]}, the student's is {students[name]}"
        for name in students
        if teachers[name] != students[name]
    ]
    return apart, "; ".join(differences)


def _settings(model: Blueprint) -> dict[str, str]:
    image_processor = model.inputs.processor.image_processor
    settings: dict[str, Any] = {name: getattr(image_processor, name, None) for name in PROCESSOR_FIELDS}
    settings |= {name: _sides(settings[name]) for name in ("size", "crop_size") if settings[name]}
    return {"kind": type(image_processor).__name__} | {name: str(value) for name, value in settings.items()}


def _sides(size: Mapping[str, int | None]) -> dict[str, int]:
    return {name: side for name, side in dict(size).items() if side is not None}


def layer_difference(teacher: LlavaBlueprint, student: Blueprint) -> Difference | None:
    """Return the feature layers of both towers where they differ, or None."""
    ours = getattr(student.config, "vision_feature_layer", None)
    theirs = teacher.config.vision_feature_layer
    return None if ours == theirs else (f"teacher: feature layer is {theirs}, the student's is {ours}", LAYER_HINT)


def image_note(teacher: LlavaBlueprint, student: Blueprint) -> str | None:
    """Return a note of how the two prepare images differently, where it is too little to refuse, or None."""
    apart, settings = _preparation_difference(student, teacher)
    return f"teacher: images are prepared nearly alike ({apart:.1%} apart): {settings}" if apart else None


def problems(model: LlavaBlueprint) -> Iterator[str]:
    """Yield where the config, the tokenizer and the image processor don't fit together."""
    tokenizer, vision = model.inputs.tokenizer, model.config.vision_config
    if (image := tokenizer.convert_tokens_to_ids(IMAGE)) != model.config.image_token_id:
        yield f"{IMAGE} is token {image} of the tokenizer, the config says {model.config.image_token_id}"
    layer, layers = model.config.vision_feature_layer, vision.num_hidden_layers
    if not isinstance(layer, int) or not -layers <= layer <= -1:
        yield f"feature_layer is counted from the end, -1 to -{layers}, got {layer}"
    try:
        with as_user_error("the image processor can't prepare an image"):
            size, tokens = _image_size_and_tokens(model)
    except UserError as error:
        yield from error.problems
        return
    if size != (vision.image_size, vision.image_size):
        yield f"the image processor makes images of {size}, the vision tower takes {vision.image_size} x {vision.image_size}"
    elif tokens != image_tokens_of(model.config):
        yield f"the processor puts {tokens} image tokens into the text, the model makes {image_tokens_of(model.config)}"
    if getattr(model.config, "projector_pooling", 1) > 1 and (problem := _grid_problem(model)):
        yield problem


def _grid_problem(model: Blueprint) -> str | None:
    """Return why a pooling projector can't arrange the features in a grid, or None."""
    side, features = _grid(model), features_of(model.config)
    pooling = model.config.projector_pooling
    if features != side**2:
        return (
            f"ldpnetv2 needs the whole grid of {side} x {side} features, got {features}: feature_select should "
            "drop CLIP's class token (default) and nothing of SigLIP (full)"
        )
    return f"ldpnetv2 needs a grid with a side divisible by {pooling}, got {side}" if side % pooling else None


def _grid(model: Blueprint) -> int:
    """Return the number of patches on a side."""
    return model.config.vision_config.image_size // model.config.vision_config.patch_size


def _image_size_and_tokens(model: Blueprint) -> tuple[tuple[int, int], int]:
    """Return (height, width) of a prepared image, and the number of image tokens that the processor writes for it.

    Raises UserError for a processor that fails, or that would make images of a size that no tower takes.
    """
    processor, image_processor = model.inputs.processor, model.inputs.processor.image_processor
    for size in (image_processor.size, getattr(image_processor, "crop_size", None)):
        if size and not all(1 <= side <= LARGEST for side in _sides(size).values()):
            raise UserError(f"the image processor makes images of {_sides(size)}, {LARGEST} is the most")
    pixels = _pixels(model)
    if not pixels.isfinite().all():
        mean, std = _normalisation(model)
        raise UserError(f"the image processor makes values that are not finite (mean {mean}, std {std})")
    ids = processor(images=Image.new("RGB", PROBES[0]), text=processor.image_token)["input_ids"][0]
    height, width = pixels.shape[-2:]
    return (height, width), list(ids).count(processor.tokenizer.convert_tokens_to_ids(IMAGE))


def _pixels(model: Blueprint) -> Tensor:
    """Return a wide and a tall test image, prepared by the model's image processor, [2, 3, H, W].

    They are colour gradients, so that each place has its own colour: padding, cropping or squashing shows clearly,
    another resampling hardly at all.
    """
    images = []
    for width, height in PROBES:
        across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        images.append(Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)))
    with np.errstate(all="ignore"):  # a standard deviation of 0: the caller checks the values
        return prepared_pixels(model.inputs.processor.image_processor, images)


def _normalisation(model: Blueprint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    image_processor = model.inputs.processor.image_processor
    return tuple(image_processor.image_mean or ()), tuple(image_processor.image_std or ())
