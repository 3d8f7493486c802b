"""A training's checkpoints on disk: written whole or not at all, proved before they are used, and thinned out.

<run>/checkpoints/<stage>-<step>/   state.safetensors, state.json, and manifest.json with their sizes and hashes
<run>/checkpoints/marks.json        how long the run's growing files were when each part of it began

A folder gets its name when all of it is on disk; one whose name begins with a dot was never finished.
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
SCORES = "=scores"  # the mark of what comes after the last stage; no stage can have this name
_NAME = re.compile(r"(?P<stage>[A-Za-z][A-Za-z0-9_-]*)-(?P<step>\d+)$")


@dataclass(frozen=True)
class Saved:
    """A stage's state after so many steps."""

    path: Path
    stage: str
    step: int

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def state(self) -> dict[str, Any]:
        """The plain values; empty where there are none to be read."""
        state = read_json(self.path / STATE)
        return state if isinstance(state, dict) else {}

    @property
    def lengths(self) -> Mapping[str, int]:
        """How long the run's growing files were."""
        return self.state["lengths"]

    @property
    def score(self) -> float | None:
        """The figure that the best is chosen by; lower is better."""
        return self.state.get("score")

    def faults(self) -> list[str]:
        """What is wrong with its files."""
        manifest = read_json(self.path / MANIFEST)
        if not _is_manifest(manifest):
            return [f"{self}: {MANIFEST} is missing or broken"]
        found = [f"{self}: {fault}" for name, told in manifest.items() if (fault := self._fault(name, told))]
        return found or ([] if _are_lengths(self.state.get("lengths")) else [f"{self}: {STATE} is no state"])

    def _fault(self, name: str, told: Mapping[str, Any]) -> str | None:
        file = self.path / name
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size) != told["bytes"]:
            return f"{name} has {size} bytes of {told['bytes']}"
        return None if sha256(file).hex() == told["sha256"] else f"{name} is not what was written (sha256)"


def saved(folder: RunFolder, stage: str) -> list[Saved]:
    """A stage's checkpoints, the newest first."""
    if not folder.checkpoints.is_dir():
        return []
    named = [(path, _NAME.match(path.name)) for path in folder.checkpoints.iterdir() if path.is_dir()]
    found = [Saved(path, m["stage"], int(m["step"])) for path, m in named if m and m["stage"] == stage]
    return sorted(found, key=lambda one: -one.step)


@contextmanager
def writing(folder: RunFolder, stage: str, step: int) -> Iterator[Path]:
    """Give a folder to write a checkpoint's files into; it becomes a checkpoint when the block ends well."""
    sweep(folder)
    with atomic_folder(folder.checkpoints / f"{stage}-{step}") as partial:
        yield partial
        manifest = {file.name: _told(file) for file in sorted(partial.iterdir())}
        write_json(partial / MANIFEST, manifest)
        for path in (*partial.iterdir(), partial):
            sync(path)
    sync(folder.checkpoints)


def prune(folder: RunFolder, stage: str, *, keep: int, best: bool) -> None:
    """Remove all but the newest and, if wanted, the best."""
    there = saved(folder, stage)
    spared = there[:keep] + ([one] if best and (one := best_of(folder, stage)) else [])
    for one in there:
        if one not in spared:
            remove_folder(one.path)


def best_of(folder: RunFolder, stage: str) -> Saved | None:
    """The one with the lowest score; of equals the oldest."""
    scored = [(one.score, one.step, one) for one in saved(folder, stage)]
    return min((s for s in scored if s[0] is not None), default=(None, 0, None), key=lambda s: s[:2])[-1]


def mark(folder: RunFolder, part: str) -> None:
    """Write down that a part of the run (a stage, or `SCORES`) begins here."""
    folder.checkpoints.mkdir(exist_ok=True)
    write_json(folder.checkpoints / "marks.json", {**marks(folder), part: folder.lengths()})


def marked(folder: RunFolder, part: str) -> Mapping[str, int] | None:
    """How long the growing files were when the part began; None when it did not."""
    return marks(folder).get(part)


def marks(folder: RunFolder) -> dict[str, dict[str, int]]:
    found = read_json(folder.checkpoints / "marks.json")
    return {part: at for part, at in found.items() if _are_lengths(at)} if isinstance(found, dict) else {}


def sweep(folder: RunFolder) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in folder.checkpoints.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def drop(folder: RunFolder, stage: str) -> None:
    """Remove a stage's checkpoints: what it gave is saved."""
    for one in saved(folder, stage):
        remove_folder(one.path)


def clear(folder: RunFolder) -> None:
    """Remove all checkpoints: the run is over."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def _is_manifest(value: Any) -> bool:
    whole = isinstance(value, dict) and value.keys() >= {STATE, TENSORS}
    return whole and all(
        isinstance(told, dict) and told.keys() >= {"bytes", "sha256"} for told in value.values()
    )


def _are_lengths(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(length, int) for length in value.values())


def _told(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256(file).hex()}
