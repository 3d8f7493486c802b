"""What is known of each image: one tensor where all images have the same shape, otherwise a tuple of tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

PerImage = Tensor | tuple[Tensor, ...]
"""Stacked, [P, M, ...], or P tensors [M_p, ...] where images have different numbers M_p of visual tokens.

Without any image it is a tensor [0, ...], so that it has a dtype, a device and a graph.
"""


def together(images: Sequence[Tensor]) -> PerImage:
    """The tensors of one or more images: stacked where their shapes agree, otherwise as a tuple."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else tuple(images)


def apply(function: Callable[[Tensor], Tensor], values: PerImage) -> PerImage:
    """Apply a function that treats every image alike (a linear map, ``detach``), in one call where they are stacked."""
    return function(values) if isinstance(values, Tensor) else tuple(function(image) for image in values)


def flat(values: PerImage) -> Tensor:
    """All images' values one after another, [sum of M_p, ...]."""
    return values.flatten(0, 1) if isinstance(values, Tensor) else torch.cat(values)


def loss_per_image(loss: Callable[..., Tensor], *arguments: Any, **parameters: Any) -> Tensor:
    """Call a loss over images [P, ...] -> [P]; image by image where an argument is a tuple of P tensors.

    In that case the other tensors are cut into their P images, and what is no tensor is passed on.
    """
    ragged = [argument for argument in arguments if isinstance(argument, tuple)]
    if not ragged:
        return loss(*arguments, **parameters)

    def of_image(argument: Any, image: int) -> Any:
        return argument[image][None] if isinstance(argument, Tensor | tuple) else argument

    given = ([of_image(argument, image) for argument in arguments] for image in range(len(ragged[0])))
    return torch.cat([loss(*of_one, **parameters) for of_one in given])
