"""Where an unfinished run resumes: the newest stage and step with an intact checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from switchkd_cli.errors import CRASH, UserError
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import checkpoints, run_folder
from switchkd_cli.runs.checkpoints import SCORES, SavedState
from switchkd_cli.runs.run_folder import RunFolder


@dataclass(frozen=True)
class ResumePoint:
    """The `step` of a `stage` that training resumes from. `stage` is None when all stages are trained.

    `lengths` are those of the run's growing files at that moment (None: leave them), `damaged` the newer checkpoints
    that can't be used, with their `faults`.
    """

    stage: str | None
    step: int = 0
    lengths: Mapping[str, int] | None = None
    damaged: tuple[SavedState, ...] = ()
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"stage {self.stage}, step {self.step}" if self.stage else "its scores"


def resume_point(folder: RunFolder, run: Run) -> ResumePoint | None:
    """Where the run in the folder resumes; None when it has nothing to resume from.

    Raises UserError when its stage has checkpoints and none of them is intact.
    """
    marks = checkpoints.marks(folder)
    if not marks:
        return None
    stages = [stage.name for stage in run.config.stages]
    untrained = [name for i, name in enumerate(stages) if not run_folder.stage(folder.root, run.stage_key(i)).done]
    part = untrained[0] if untrained else SCORES
    if part in marks:
        return _newest_intact(folder, part, marks[part]) if untrained else ResumePoint(None, lengths=marks[part])
    newest = next((name for name in reversed(stages) if name in marks), stages[0])
    last: dict[str, Any] = next((entry for entry in reversed(list(folder.entries())) if "steps" in entry), {})
    # without its last step in the metrics, another run has trained this stage to its end meanwhile
    complete = last.get("stage") == newest and last.get("step") == last.get("steps")
    return ResumePoint(untrained[0] if untrained else None, lengths=None if complete else marks[newest])


def rewind(folder: RunFolder, point: ResumePoint) -> None:
    """Bring the folder back to the state that it had at that point."""
    for one in point.damaged:
        shutil.move(one.path, one.path.with_name(f"{one.path.name}.damaged"))
    checkpoints.sweep(folder)
    if point.lengths is not None:
        folder.cut(point.lengths)


def _newest_intact(folder: RunFolder, stage: str, lengths: Mapping[str, int]) -> ResumePoint:
    """The newest intact checkpoint of a stage, or its beginning when there is no checkpoint."""
    damaged: list[SavedState] = []
    faults: list[str] = []
    for one in checkpoints.saved(folder, stage):
        found = one.faults()
        if not found:
            return ResumePoint(stage, one.step, one.lengths, tuple(damaged), tuple(faults))
        damaged.append(one)
        faults += found
    if damaged:
        raise UserError(
            [*faults, f"{folder.path}: no checkpoint of stage {stage} is intact"],
            hint="restore the files from a copy, or add --overwrite to start again",
            code=CRASH,
        )
    return ResumePoint(stage, 0, lengths)
