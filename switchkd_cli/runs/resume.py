"""Where an unfinished run stands: the stage and step that it can go on from, by what is whole on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from switchkd_cli.errors import CRASH, UserError
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import checkpoints, run_folder
from switchkd_cli.runs.checkpoints import SCORES, Saved
from switchkd_cli.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Standing:
    """The `step` of a `stage` (None: all are trained) that a run goes on from.

    `lengths` are those of its growing files at that moment (None: as they are), `damaged` newer checkpoints that
    can't be used, with their `faults`.
    """

    stage: str | None
    step: int = 0
    lengths: Mapping[str, int] | None = None
    damaged: tuple[Saved, ...] = ()
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"stage {self.stage}, step {self.step}" if self.stage else "its scores"


def standing(folder: RunFolder, run: Run) -> Standing | None:
    """Where the run in the folder stands; None when it left nothing to go on from.

    Raises UserError when there are checkpoints of its stage and none of them is whole.
    """
    begun = checkpoints.marks(folder)
    if not begun:
        return None
    stages = [stage.name for stage in run.config.stages]
    left = [name for i, name in enumerate(stages) if not run_folder.stage(folder.root, run.stage_key(i)).done]
    part = left[0] if left else SCORES
    if part in begun:
        return _newest(folder, part, begun[part]) if left else Standing(None, lengths=begun[part])
    newest = next((name for name in reversed(stages) if name in begun), stages[0])
    whole = _is_whole(folder, newest)  # else another run has trained this stage to its end meanwhile
    return Standing(left[0] if left else None, lengths=None if whole else begun[newest])


def go_on(folder: RunFolder, at: Standing) -> None:
    """Make the folder what it was at that moment."""
    for one in at.damaged:
        shutil.move(one.path, one.path.with_name(f"{one.path.name}.damaged"))
    checkpoints.sweep(folder)
    if at.lengths is not None:
        folder.cut(at.lengths)


def _newest(folder: RunFolder, stage: str, begun: Mapping[str, int]) -> Standing:
    damaged: list[Saved] = []
    faults: list[str] = []
    for one in checkpoints.saved(folder, stage):
        found = one.faults()
        if not found:
            return Standing(stage, one.step, one.lengths, tuple(damaged), tuple(faults))
        damaged.append(one)
        faults += found
    if damaged:
        raise UserError(
            [*faults, f"{folder.path}: no checkpoint of stage {stage} is whole"],
            hint="bring the files back from a copy, or add --overwrite to start again",
            code=CRASH,
        )
    return Standing(stage, 0, begun)


def _is_whole(folder: RunFolder, stage: str) -> bool:
    """Whether the metrics hold the stage's last step."""
    last = newest_step(folder)
    return last.get("stage") == stage and last.get("step") == last.get("steps")


def newest_step(folder: RunFolder) -> dict[str, Any]:
    """The last step that was logged; empty when there was none."""
    return next((entry for entry in reversed(list(folder.entries())) if "steps" in entry), {})
