"""Save and restore random-number state, as plain values and tensors."""

import random
from typing import Any

import numpy as np
import torch

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
