"""A training's state (nested plain values and tensors) as two files, safetensors and JSON: nothing is pickled. That of random numbers."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_with_path

from switchkd_cli.engine.weights import is_finite
from switchkd_cli.errors import UTF8
from switchkd_cli.runs.checkpoints import STATE, TENSORS

REFERENCE = "tensor:"
"""Prefix of the text that stands for a tensor in the JSON file; its name in the other file follows."""


def write_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write the state's files into `folder`.

    Raises ValueError for a non-finite weight or moment: such a state is not worth resuming from.
    """
    tensors: dict[str, Tensor] = {}

    def reference(place: tuple[Any, ...], value: Any) -> Any:
        """Return what stands for a value in the JSON file; `place` are the keys and indices that lead to it."""
        if not isinstance(value, Tensor):
            return value
        name = "/".join(str(getattr(step, "key", getattr(step, "idx", step))) for step in place)
        tensors[name] = value.detach().contiguous()
        return REFERENCE + name

    plain = tree_map_with_path(reference, dict(state))
    if non_finite := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise ValueError(f"not finite: {', '.join(non_finite[:3])}" + " ..." * (len(non_finite) > 3))
    save_file(tensors, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(plain, ensure_ascii=False) + "\n", **UTF8)


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote, on the CPU."""
    tensors = load_file(folder / TENSORS)

    def value_of(plain: Any) -> Any:
        is_reference = isinstance(plain, str) and plain.startswith(REFERENCE)
        return tensors[plain.removeprefix(REFERENCE)] if is_reference else plain

    return tree_map(value_of, json.loads((folder / STATE).read_text(encoding="utf-8")))


def bytes_of(state: Mapping[str, Any]) -> int:
    """Return the bytes of a state's tensors."""
    return sum(value.nbytes for value in tree_leaves(dict(state)) if isinstance(value, Tensor))


PYTHON = ("version", "words", "gauss")
NUMPY = ("name", "keys", "position", "has_gauss", "cached")  # of the legacy form, a tuple


def random_state() -> dict[str, Any]:
    """Return the states of Python, numpy, torch and of each accelerator."""
    numpy: dict[str, Any] = dict(zip(NUMPY, np.random.get_state(), strict=True))
    return {
        "python": dict(zip(PYTHON, random.getstate(), strict=True)),
        "numpy": {**numpy, "keys": torch.from_numpy(numpy["keys"].astype(np.int64))},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue drawing where `random_state` was taken."""
    version, words, gauss = (state["python"][name] for name in PYTHON)
    random.setstate((version, tuple(words), gauss))
    numpy = {**state["numpy"], "keys": state["numpy"]["keys"].numpy().astype(np.uint32)}
    np.random.set_state(tuple(numpy[name] for name in NUMPY))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
