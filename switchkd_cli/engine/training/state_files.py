"""A state (nested plain values and tensors) as two files: safetensors and JSON. Nothing is pickled."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from switchkd_cli.engine.weights import finite
from switchkd_cli.errors import UTF8
from switchkd_cli.runs.checkpoints import STATE, TENSORS

HELD = "tensor:"
"""Opens the text that stands in the JSON file for a tensor; what follows is its name in the other file."""


def write_state(state: Mapping[str, Any], folder: Path) -> None:
    """Writes the state's files into `folder`.

    Raises ValueError for a weight or a moment that is not finite: no such state is worth going on from.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(state)}
    if poisoned := [name for name, tensor in tensors.items() if not finite(tensor)]:
        raise ValueError(f"not finite: {', '.join(poisoned[:3])}" + " ..." * (len(poisoned) > 3))
    save_file(tensors, folder / TENSORS)
    plain = json.dumps(_plain(state), ensure_ascii=False)
    (folder / STATE).write_text(plain + "\n", **UTF8)


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU."""
    tensors = load_file(folder / TENSORS)
    return _whole(json.loads((folder / STATE).read_text(encoding="utf-8")), tensors)


def size_of(state: Mapping[str, Any]) -> int:
    """Bytes of its tensors."""
    return sum(tensor.nbytes for _, tensor in _tensors(state))


def _tensors(value: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside, by their place."""
    if isinstance(value, Tensor):
        yield at, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{at}/{key}" if at else key)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{at}/{index}")


def _plain(value: Any, at: str = "") -> Any:
    """The same without its tensors."""
    if isinstance(value, Tensor):
        return HELD + at
    if isinstance(value, Mapping):
        return {key: _plain(inner, f"{at}/{key}" if at else key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{at}/{index}") for index, inner in enumerate(value)]
    return value


def _whole(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(HELD):
        return tensors[value.removeprefix(HELD)]
    if isinstance(value, dict):
        return {key: _whole(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner, tensors) for inner in value]
    return value


def put_weights(paths: nn.Module, state: Mapping[str, Any]) -> None:
    """Gives the trained parameters the values that they had."""
    named = dict(paths.named_parameters())
    with torch.no_grad():
        for name, weight in state["weights"].items():
            named[name].copy_(weight)
