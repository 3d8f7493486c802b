"""A training's checkpoints on disk: written whole or not at all, verified before use, and removed when they are old.

<run>/checkpoints/<stage>-<step>/   state.safetensors, state.json, and manifest.json with their sizes and hashes
<run>/checkpoints/marks.json        lengths of the run's growing files at the beginning of each part

A folder whose name begins with a dot was never finished.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchkd_cli.files.atomic import atomic_folder, read_json, remove_folder, sync, write_json
from switchkd_cli.files.hashes import sha256
from switchkd_cli.runs.run_folder import RunFolder

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = "state.safetensors"
SCORES = "=scores"  # the part after the last stage; no stage can have this name
_NAME = re.compile(r"(?P<stage>[A-Za-z][A-Za-z0-9_-]*)-(?P<step>\d+)$")


@dataclass(frozen=True)
class SavedState:
    """A checkpoint: the state of a stage after `step` steps."""

    path: Path
    stage: str
    step: int

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def state(self) -> dict[str, Any]:
        """The plain values; empty when they can't be read."""
        state = read_json(self.path / STATE)
        return state if isinstance(state, dict) else {}

    @property
    def lengths(self) -> Mapping[str, int]:
        """Lengths of the run's growing files at that step."""
        return self.state["lengths"]

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
    if not folder.checkpoints.is_dir():
        return []
    named = [(path, _NAME.match(path.name)) for path in folder.checkpoints.iterdir() if path.is_dir()]
    states = [SavedState(path, m["stage"], int(m["step"])) for path, m in named if m and m["stage"] == stage]
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
    states = saved(folder, stage)
    kept = states[:keep] + ([state] if best and (state := best_of(folder, stage)) else [])
    for state in states:
        if state not in kept:
            remove_folder(state.path)


def best_of(folder: RunFolder, stage: str) -> SavedState | None:
    """The checkpoint with the lowest score; of equals the oldest."""
    scored = [(score, state.step, state) for state in saved(folder, stage) if (score := state.score) is not None]
    return min(scored, key=lambda one: one[:2])[-1] if scored else None


def mark(folder: RunFolder, part: str) -> None:
    """Record that a part of the run (a stage, or `SCORES`) begins here."""
    folder.checkpoints.mkdir(exist_ok=True)
    write_json(folder.checkpoints / "marks.json", {**marks(folder), part: folder.lengths()})


def marked(folder: RunFolder, part: str) -> Mapping[str, int] | None:
    """Lengths of the growing files at the beginning of the part; None when it has not begun."""
    return marks(folder).get(part)


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


def drop(folder: RunFolder, stage: str) -> None:
    """Remove a stage's checkpoints, once its student is saved."""
    for state in saved(folder, stage):
        remove_folder(state.path)


def clear(folder: RunFolder) -> None:
    """Remove all checkpoints of a finished run."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() >= {STATE, TENSORS}
        and all(isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"} for entry in value.values())
    )


def _are_lengths(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(length, int) for length in value.values())
