"""The checkpoints of a training: when one is due, which are kept, resuming from the newest; the state that they hold.

A state (nested plain values and tensors) is two files, safetensors and JSON: nothing is pickled. It has that of random numbers.
"""

import json
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_with_path

from switchkd_cli.engine.weights import is_finite
from switchkd_cli.errors import CRASH, MACHINE, UTF8, UserError
from switchkd_cli.recipe.schema import HIGHER, VALIDATION, Saving
from switchkd_cli.runs import checkpoints
from switchkd_cli.runs.run_folder import RunFolder

REFERENCE = "tensor:"
"""Prefix of the text that stands for a tensor in the JSON file; its name in the other file follows."""
PYTHON = ("version", "words", "gauss")
NUMPY = ("name", "keys", "position", "has_gauss", "cached")  # of the legacy form, a tuple


class CheckpointWriter:
    """Writes the checkpoints of one stage of a run, as its recipe says."""

    def __init__(self, folder: RunFolder, stage: str, saving: Saving) -> None:
        self.folder, self.stage, self.saving = folder, stage, saving
        self._scores: list[float] = []  # of the steps since the last checkpoint that was scored
        self._written = time.monotonic()
        self._step = 0  # of the newest one

    def restore(self, load: Callable[[dict[str, Any]], None]) -> None:
        """Load the newest state, if there is one; runs/checkpoints.py has already removed incomplete ones.

        Raises UserError for a complete state of another training.
        """
        if not (saved := checkpoints.saved(self.folder, self.stage)):
            return
        try:
            load(state := read_state(saved[0].path))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            problem = f"{self._name(saved[0].step)}: is not of this training: {type(error).__name__}: {error}"
            raise UserError(problem, hint="add --overwrite to start again") from error
        self._step, self._scores = saved[0].step, state.get("scores", [])

    def add_score(self, figures: dict[str, float]) -> None:
        """Take in the step's figure that the best checkpoint is chosen by, if the step has it.

        A validation's is that of the step's weights, so it replaces the figures before.
        """
        if self._validates:
            self._scores = []
        if self.saving.best in figures and math.isfinite(figures[self.saving.best]):
            self._scores.append(figures[self.saving.best] * (-1 if self.saving.best in HIGHER else 1))

    def is_due(self, step: int) -> bool:
        """Whether to write a checkpoint after this step."""
        every, minutes = self.saving.every_steps, self.saving.every_minutes
        late = minutes is not None and time.monotonic() - self._written >= 60 * minutes
        if late or (every is not None and step % every == 0):
            return True
        if not (self._validates and self._scores):
            return False
        # this step's weights are gone after the next one: are they better than every checkpoint's?
        best = checkpoints.best_of(self.folder, self.stage)
        return best is None or best.score is None or self._scores[0] < best.score

    @property
    def _validates(self) -> bool:
        """Whether the best checkpoint is chosen by a validation."""
        return self.saving.best is not None and self.saving.best.startswith(VALIDATION)

    def save(self, step: int, state: dict[str, Any], *, scored: bool = True) -> None:
        """Write a checkpoint; when it is complete, remove those not to be kept.

        It may become the best if it is `scored`: not where a stop decides the moment, which may be of too few steps.
        Raises UserError when it can't be written (code MACHINE) or the weights are non-finite (CRASH): older checkpoints
        stay.
        """
        if step == self._step:
            return
        score = sum(self._scores) / len(self._scores) if scored and self._scores else None
        left = [] if scored else self._scores
        try:
            with checkpoints.writing(self.folder, self.stage, step) as partial:
                more = {"score": score, "scores": left, "lengths": self.folder.lengths()}
                write_state({**state, **more}, partial)
        except (OSError, SafetensorError) as error:
            what = f"could not be written ({bytes_of(state) / 2**20:,.0f} MiB)"
            why = getattr(error, "strerror", None) or str(error)
            hint = f"{self.newest()}: free some space and give the same command again"
            raise UserError(f"{self._name(step)}: {what}: {why}", hint=hint, code=MACHINE) from error
        except ValueError as error:
            what = f"{self._name(step)}: not written, the weights are lost: {error}"
            hint = f"{self.newest()}: lower the learning rate: stages.{self.stage}.lr"
            raise UserError(what, hint=hint, code=CRASH) from error
        checkpoints.prune(self.folder, self.stage, keep=self.saving.keep, best=self.saving.best is not None)
        self._step, self._scores, self._written = step, left, time.monotonic()

    def best(self) -> Path | None:
        """Return the best checkpoint's folder, if the recipe wants one and a score was taken."""
        best = checkpoints.best_of(self.folder, self.stage) if self.saving.best is not None else None
        return best.path if best else None

    def _name(self, step: int) -> str:
        return f"{self.folder.checkpoints.name}/{self.stage}-{step}"

    def newest(self) -> str:
        """Return words that name the newest checkpoint."""
        saved = checkpoints.saved(self.folder, self.stage)
        return f"the newest intact checkpoint is {saved[0]}" if saved else "no checkpoint was written before"


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
    save_file(tensors, folder / checkpoints.TENSORS)
    (folder / checkpoints.STATE).write_text(json.dumps(plain, ensure_ascii=False) + "\n", **UTF8)


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote, on the CPU."""
    tensors = load_file(folder / checkpoints.TENSORS)

    def value_of(plain: Any) -> Any:
        is_reference = isinstance(plain, str) and plain.startswith(REFERENCE)
        return tensors[plain.removeprefix(REFERENCE)] if is_reference else plain

    return tree_map(value_of, json.loads((folder / checkpoints.STATE).read_text(encoding="utf-8")))


def bytes_of(state: Mapping[str, Any]) -> int:
    """Return the bytes of a state's tensors."""
    return sum(value.nbytes for value in tree_leaves(dict(state)) if isinstance(value, Tensor))


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
