"""A training's checkpoints on disk: written whole or not at all, verified before a run resumes, removed when old.

<run>/checkpoints/<stage>-<step>/   state.safetensors, state.json, and manifest.json with their sizes and hashes
<run>/checkpoints/marks.json        lengths of the run's growing files at the beginning of each part

A folder whose name begins with a dot was never finished.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchkd_cli.errors import CRASH, UserError
from switchkd_cli.files.atomic import atomic_folder, read_json, remove_folder, sync, write_json
from switchkd_cli.files.hashes import sha256
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = "state.safetensors"
SCORES = "=scores"  # the part after the last stage; no stage can have this name


@dataclass(frozen=True)
class SavedState:
    """A checkpoint: the state of a stage after `step` steps."""

    path: Path
    step: int

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def state(self) -> dict[str, Any]:
        """The plain values; empty when they can't be read."""
        state = read_json(self.path / STATE)
        return state if isinstance(state, dict) else {}

    @property
    def score(self) -> float | None:
        """The figure that the best checkpoint is chosen by; lower is better."""
        return self.state.get("score")

    def faults(self) -> list[str]:
        """What is wrong with its files; empty for an intact checkpoint."""
        manifest = read_json(self.path / MANIFEST)
        if not _is_manifest(manifest):
            return [f"{self}: {MANIFEST} is missing or broken"]
        faults = [f"{self}: {fault}" for name, entry in manifest.items() if (fault := self._fault(name, entry))]
        return faults or ([] if _are_lengths(self.state.get("lengths")) else [f"{self}: {STATE} is no state"])

    def _fault(self, name: str, entry: Mapping[str, Any]) -> str | None:
        file = self.path / name
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes of {entry['bytes']}"
        return None if sha256(file).hex() == entry["sha256"] else f"{name} is not what was written (sha256)"


def saved(folder: RunFolder, stage: str) -> list[SavedState]:
    """A stage's checkpoints, the newest first."""
    steps = {path: path.name.removeprefix(f"{stage}-") for path in folder.checkpoints.glob(f"{stage}-*/")}
    states = [SavedState(path, int(step)) for path, step in steps.items() if step.isdecimal()]
    return sorted(states, key=lambda state: -state.step)


@contextmanager
def writing(folder: RunFolder, stage: str, step: int) -> Iterator[Path]:
    """Give a folder for a checkpoint's files; it becomes the checkpoint when the block ends without an error.

    It replaces a checkpoint of the same step, which is there when the run resumed from an older one.
    """
    sweep(folder)
    with atomic_folder(folder.checkpoints / f"{stage}-{step}") as partial:
        yield partial
        files = sorted(partial.iterdir())
        manifest = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f).hex()} for f in files}
        write_json(partial / MANIFEST, manifest)
        for path in (*partial.iterdir(), partial):
            sync(path)
    sync(folder.checkpoints)


def prune(folder: RunFolder, stage: str, *, keep: int, best: bool) -> None:
    """Remove all checkpoints of a stage except the `keep` newest and, with `best`, the best."""
    best_state = best_of(folder, stage) if best else None
    for state in saved(folder, stage)[keep:]:
        if state != best_state:
            remove_folder(state.path)


def best_of(folder: RunFolder, stage: str) -> SavedState | None:
    """The checkpoint with the lowest score; of equals the oldest."""
    scored = [(score, state.step, state) for state in saved(folder, stage) if (score := state.score) is not None]
    return min(scored, key=lambda one: one[:2])[-1] if scored else None


def mark(folder: RunFolder, part: str) -> None:
    """Record that a part of the run (a stage, or `SCORES`) begins here."""
    folder.checkpoints.mkdir(exist_ok=True)
    write_json(folder.checkpoints / "marks.json", {**marks(folder), part: folder.lengths()})


def marks(folder: RunFolder) -> dict[str, dict[str, int]]:
    """Lengths of the growing files by the parts that have begun."""
    content = read_json(folder.checkpoints / "marks.json")
    return {part: at for part, at in content.items() if _are_lengths(at)} if isinstance(content, dict) else {}


def sweep(folder: RunFolder) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in folder.checkpoints.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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
    if not (begun := marks(folder)):
        return None
    stages = [stage.name for stage in run.config.stages]
    untrained = [name for i, name in enumerate(stages) if not run_folder.stage(folder.root, run.stage_key(i)).done]
    part = untrained[0] if untrained else SCORES
    if part in begun:
        return _newest_intact(folder, part, begun[part]) if untrained else ResumePoint(None, lengths=begun[part])
    newest = next((name for name in reversed(stages) if name in begun), stages[0])
    last: dict[str, Any] = next((entry for entry in reversed(folder.entries()) if "steps" in entry), {})
    # without its last step in the metrics, another run has trained this stage to its end meanwhile
    complete = last.get("stage") == newest and last.get("step") == last.get("steps")
    return ResumePoint(untrained[0] if untrained else None, lengths=None if complete else begun[newest])


def rewind(folder: RunFolder, point: ResumePoint) -> None:
    """Bring the folder back to the state that it had at that point.

    Checkpoints of other stages are removed: a later one's were taken before an earlier stage had to be trained again.
    """
    for path in folder.checkpoints.glob("*/"):
        if path.name.rpartition("-")[0] != point.stage:
            remove_folder(path)
    for one in point.damaged:
        shutil.move(one.path, one.path.with_name(f"{one.path.name}.damaged"))
    sweep(folder)
    if point.lengths is not None:
        folder.cut(point.lengths)


def _newest_intact(folder: RunFolder, stage: str, lengths: Mapping[str, int]) -> ResumePoint:
    """The newest intact checkpoint of a stage, or its beginning when there is no checkpoint."""
    damaged: list[SavedState] = []
    faults: list[str] = []
    for one in saved(folder, stage):
        found = one.faults()
        if not found:
            return ResumePoint(stage, one.step, one.state["lengths"], tuple(damaged), tuple(faults))
        damaged.append(one)
        faults += found
    if damaged:
        problems = [*faults, f"{folder.path}: no checkpoint of stage {stage} is intact"]
        raise UserError(problems, hint="restore the files from a copy, or add --overwrite to start again", code=CRASH)
    return ResumePoint(stage, 0, lengths)


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() >= {STATE, TENSORS}
        and all(isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"} for entry in value.values())
    )


def _are_lengths(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(length, int) for length in value.values())
