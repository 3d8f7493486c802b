"""A training's state (nested plain values and tensors) as two files, safetensors and JSON. Nothing is pickled."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from switchkd_cli.engine.weights import is_finite
from switchkd_cli.errors import UTF8
from switchkd_cli.runs.checkpoints import STATE, TENSORS

REFERENCE = "tensor:"
"""Prefix of the text that stands for a tensor in the JSON file; its name in the other file follows."""


def write_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write the state's files into `folder`.

    Raises ValueError for a non-finite weight or moment: such a state is not worth resuming from.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(state)}
    if non_finite := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise ValueError(f"not finite: {', '.join(non_finite[:3])}" + " ..." * (len(non_finite) > 3))
    save_file(tensors, folder / TENSORS)
    plain = json.dumps(_with_references(state), ensure_ascii=False)
    (folder / STATE).write_text(plain + "\n", **UTF8)


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote, on the CPU."""
    tensors = load_file(folder / TENSORS)
    return _with_tensors(json.loads((folder / STATE).read_text(encoding="utf-8")), tensors)


def bytes_of(state: Mapping[str, Any]) -> int:
    """Return the bytes of a state's tensors."""
    return sum(tensor.nbytes for _, tensor in _tensors(state))


def _tensors(value: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside, with their place."""
    if isinstance(value, Tensor):
        yield at, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{at}/{key}" if at else key)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{at}/{index}")


def _with_references(value: Any, at: str = "") -> Any:
    """Return the value with a reference in place of each tensor."""
    if isinstance(value, Tensor):
        return REFERENCE + at
    if isinstance(value, Mapping):
        return {key: _with_references(inner, f"{at}/{key}" if at else key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_references(inner, f"{at}/{index}") for index, inner in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value with a tensor in place of each reference."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        return tensors[value.removeprefix(REFERENCE)]
    if isinstance(value, dict):
        return {key: _with_tensors(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    return value


def restore_weights(paths: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the trained parameters the values of a state."""
    named = dict(paths.named_parameters())
    with torch.no_grad():
        for name, weight in state["weights"].items():
            named[name].copy_(weight)
