"""What a training leaves on disk while it runs: when a checkpoint is due, which are kept, and steps that broke."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from switchkd_cli.engine.training.state_files import read_state, size_of, write_state
from switchkd_cli.errors import CRASH, MACHINE, UTF8, UserError
from switchkd_cli.recipe.schema import HIGHER, Saving
from switchkd_cli.runs import checkpoints
from switchkd_cli.runs.run_folder import RunFolder


class Keeper:
    """The checkpoints of one stage of a run, as its recipe wants them."""

    def __init__(self, folder: RunFolder, stage: str, saving: Saving) -> None:
        self.folder, self.stage, self.saving = folder, stage, saving
        self._scored: list[float] = []  # of the steps since the last checkpoint
        self._written = time.monotonic()
        self._step = 0  # of the newest one

    def give(self, load: Callable[[dict[str, Any]], None]) -> None:
        """Loads the newest state, if there is one; which is whole was found out before (see standing.py).

        Raises UserError for one that is whole, but of another training.
        """
        if not (found := checkpoints.saved(self.folder, self.stage)):
            return
        try:
            load(read_state(found[0].path))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{self._name(found[0].step)}: is not of this training: {type(error).__name__}: {error}",
                hint="add --overwrite to start again",
            ) from error
        self._step, self._scored = found[0].step, []

    def score(self, figures: dict[str, float]) -> None:
        """Takes the step's figure that the best checkpoint is chosen by, if it has it."""
        if self.saving.best in figures:
            self._scored.append(figures[self.saving.best] * (-1 if self.saving.best in HIGHER else 1))

    def due(self, step: int) -> bool:
        """Whether to write one after so many steps."""
        every, minutes = self.saving.every_steps, self.saving.every_minutes
        late = minutes is not None and time.monotonic() - self._written >= 60 * minutes
        return late or (every is not None and step % every == 0)

    def save(self, step: int, state: dict[str, Any], *, scored: bool = True) -> None:
        """Writes a checkpoint, that may become the best if `scored`; those that are no longer wanted go when it is whole.

        Raises UserError when the disk does not take it (code MACHINE) or the weights are not finite (CRASH): what was
        there stays.
        """
        if step == self._step:
            return
        score = sum(self._scored) / len(self._scored) if scored and self._scored else None
        try:
            with checkpoints.writing(self.folder, self.stage, step) as partial:
                write_state({**state, "score": score, "lengths": self.folder.lengths()}, partial)
        except (OSError, SafetensorError) as error:
            raise UserError(
                [
                    f"{self._name(step)}: could not be written ({size_of(state) / 2**20:,.0f} MiB): {_why(error)}"
                ],
                hint=f"{self.newest()}: free some space and give the same command again",
                code=MACHINE,
            ) from error
        except ValueError as error:
            raise UserError(
                f"{self._name(step)}: not written, the weights are lost: {error}",
                hint=f"{self.newest()}: lower the learning rate: stages.{self.stage}.lr",
                code=CRASH,
            ) from error
        checkpoints.prune(self.folder, self.stage, keep=self.saving.keep, best=self.saving.best is not None)
        self._step, self._scored, self._written = step, [], time.monotonic()

    def note(self, entry: dict[str, Any]) -> None:
        """A line of not_finite.jsonl."""
        with self.folder.not_finite.open("a", **UTF8) as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def best(self) -> Path | None:
        """The best checkpoint's folder, if the recipe asks for one and a score was taken."""
        if self.saving.best is None:
            return None
        found = checkpoints.best_of(self.folder, self.stage)
        return found.path if found else None

    def _name(self, step: int) -> str:
        return f"{self.folder.checkpoints.name}/{self.stage}-{step}"

    def newest(self) -> str:
        found = checkpoints.saved(self.folder, self.stage)
        return f"the newest whole checkpoint is {found[0]}" if found else "no checkpoint was written before"


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
