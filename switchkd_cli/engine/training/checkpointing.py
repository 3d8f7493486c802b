"""The checkpoints of a training: when one is due, which are kept, resuming from the newest; steps with non-finite figures."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from switchkd_cli.engine.training.state_files import bytes_of, read_state, write_state
from switchkd_cli.errors import CRASH, MACHINE, UserError
from switchkd_cli.recipe.schema import HIGHER, VALIDATION, Saving
from switchkd_cli.runs import checkpoints
from switchkd_cli.runs.run_folder import RunFolder


class CheckpointWriter:
    """Writes the checkpoints of one stage of a run, as its recipe says."""

    def __init__(self, folder: RunFolder, stage: str, saving: Saving) -> None:
        self.folder, self.stage, self.saving = folder, stage, saving
        self._scores: list[float] = []  # of the steps since the last checkpoint
        self._written = time.monotonic()
        self._step = 0  # of the newest one

    def restore(self, load: Callable[[dict[str, Any]], None]) -> None:
        """Load the newest state, if there is one; runs/checkpoints.py has already removed incomplete ones.

        Raises UserError for a complete state of another training.
        """
        if not (saved := checkpoints.saved(self.folder, self.stage)):
            return
        try:
            load(read_state(saved[0].path))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            problem = f"{self._name(saved[0].step)}: is not of this training: {type(error).__name__}: {error}"
            raise UserError(problem, hint="add --overwrite to start again") from error
        self._step, self._scores = saved[0].step, []

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
        """Write a checkpoint, which may become the best if `scored`; when it is complete, remove those not to be kept.

        Raises UserError when it can't be written (code MACHINE) or the weights are non-finite (CRASH): older checkpoints
        stay.
        """
        if step == self._step:
            return
        score = sum(self._scores) / len(self._scores) if scored and self._scores else None
        try:
            with checkpoints.writing(self.folder, self.stage, step) as partial:
                write_state({**state, "score": score, "lengths": self.folder.lengths()}, partial)
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
        self._step, self._scores, self._written = step, [], time.monotonic()

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
