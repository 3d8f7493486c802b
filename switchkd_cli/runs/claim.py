"""Exclusive access to a run folder. Unfinished runs resume; if code or versions changed, `--resume` is required.

The run's key says that recipe, models and data are the same, so resuming gives what a new start would give, for less.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from switchkd_cli.distributed.signals import Stopped
from switchkd_cli.errors import FULL, MACHINE, UserError
from switchkd_cli.files.atomic import atomic_folder, write_json, write_text
from switchkd_cli.recipe.run import Run, changed_fields
from switchkd_cli.runs import checkpoints, provenance
from switchkd_cli.runs.resume import ResumePoint, resume_point, rewind
from switchkd_cli.runs.run_folder import RunFolder, exclusive, folder, set_aside, shown

CHANGED = "inputs_changed"  # the event of a stage whose inputs changed while it trained
FolderState = Literal["new", "finished", "interrupted", "unfinished", "other"]


@contextmanager
def claim_folder(
    root: Path, run: Run, *, overwrite: bool = False, resume: bool = False
) -> Iterator[tuple[RunFolder, Literal["new", "finished", "resumed"]]]:
    """Hold the run's folder inside the block. Gives the folder and its state.

    "finished": the folder holds the same run, finished. "resumed": it holds the same run, unfinished, and is rewound to
    the point that training resumes from. "new": it holds only the resolved recipe and the record.

    The end of the block decides what run.json says. A UserError before the first step of a new run leaves nothing
    behind. `resume` allows that code or versions have changed. Raises UserError when the folder holds another run, or
    when another process holds it.
    """
    target = folder(root, run)
    with exclusive(target.path):
        state = folder_state(target, run)
        point = resume_point(target, run) if state == "interrupted" and not overwrite else None
        if state == "finished" and not overwrite:
            checkpoints.clear(target)  # left when the run was killed at its very end
            yield target, "finished"
        elif point is not None:
            if not resume and (changed := changed_versions(target)):
                where = f"{shown(target.path)}: interrupted at {point}"
                raise UserError(
                    [f"{where}, and begun with {change}" for change in changed],
                    hint="add --resume to resume all the same, or --overwrite to start again",
                )
            _resume(target, point)
            with _recorded(target, run, None, is_new=False):
                yield target, "resumed"
        else:
            aside = make_room(target, run, overwrite=overwrite)
            _create(target, run)
            with _recorded(target, run, aside, is_new=True):
                yield target, "new"


def folder_state(target: RunFolder, run: Run) -> FolderState:
    """What the run's folder holds: nothing, this run in some state ("interrupted" can be resumed), or another run."""
    if not target.path.exists() or all(path.name.startswith(".") for path in target.path.iterdir()):
        return "new"  # or killed before its record was complete
    info = target.info()
    if info.get("key") != run.key:
        return "other"
    if info.get("status") == "finished":
        return "finished"
    return "interrupted" if checkpoints.marks(target) else "unfinished"


def is_finished(root: Path, run: Run) -> bool:
    """Whether the run is finished, under its own name."""
    return folder_state(folder(root, run), run) == "finished"


def check_free(root: Path, run: Run) -> None:
    """Raise UserError when the run's folder holds another run."""
    target = folder(root, run)
    if folder_state(target, run) == "other":
        inputs = target.info().get("inputs")
        difference = "of another recipe text, or made by another version of switchkd"
        if inputs and (changed := changed_fields(inputs, run.inputs)):
            difference = f"changed since: {', '.join(changed)}"
        raise UserError(
            f"{shown(target.path)}: holds another run ({difference})",
            hint="add --overwrite to move it aside, or --out FOLDER to write elsewhere",
        )


def changed_versions(target: RunFolder) -> list[str]:
    """Versions, and the commit, that differ from those that the run was begun with."""
    info, versions, commit = target.info(), provenance.versions(), provenance.commit()
    before = info.get("versions", {})
    changed = [
        f"{name} {before.get(name, 'absent')}, now {versions.get(name, 'absent')}"
        for name in sorted(before.keys() | versions.keys())
        if before.get(name) != versions.get(name)
    ]
    if info.get("commit") != commit:
        changed.append(f"commit {info.get('commit')}, now {commit}")
    return changed


def make_room(target: RunFolder, run: Run, *, overwrite: bool) -> Path | None:
    """Move an earlier run aside, if that is allowed. Returns its new place; None when there was none."""
    state = folder_state(target, run)
    if state == "new":
        return None
    if not overwrite:
        check_free(target.root, run)
    word = "unfinished" if state in ("unfinished", "interrupted") else "old"
    aside = set_aside(target.path, word)
    print(f"{shown(target.path)}: {word} run moved to {aside.name}, starting again", file=sys.stderr)
    return aside


def _resume(target: RunFolder, point: ResumePoint) -> None:
    for fault in point.faults:
        print(f"{shown(target.path)}: {fault}: not used", file=sys.stderr)
    print(f"{shown(target.path)}: interrupted, resumes from {point}", file=sys.stderr)
    rewind(target, point)
    info = target.info()
    entry = {
        "at": now(),
        "stage": point.stage,
        "step": point.step,
        "command": provenance.command(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        **({"not_used": list(point.faults)} if point.faults else {}),
    }
    others = {key: value for key, value in info.items() if key not in ("ended", "error")}
    write_json(target.record, {**others, "status": "running", "resumed": [*info.get("resumed", []), entry]})


def _create(target: RunFolder, run: Run) -> None:
    for leftover in target.path.glob(f".{target.record.name}.*"):
        leftover.unlink()
    record = {
        "status": "running",
        "recipe": run.recipe,
        "row": run.row,
        "title": run.title,
        "paper": dict(run.paper),
        "seed": run.seed,
        "key": run.key,
        "inputs": run.inputs,
        "command": provenance.command(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
        "started": now(),
    }
    with atomic_folder(target.path, replace=False) as partial:
        write_text(RunFolder(partial).recipe, run.text)
        write_json(RunFolder(partial).record, record)


@contextmanager
def _recorded(target: RunFolder, run: Run, aside: Path | None, *, is_new: bool) -> Iterator[None]:
    """Around a run: write down how it ended; a new one that failed before its first step is undone."""
    began = time.monotonic()
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) and is_new and not any("step" in entry for entry in target.entries()):
            shutil.rmtree(target.path)
            if aside is not None:
                shutil.move(aside, target.path)
        else:
            status = "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            with suppress(OSError):  # on a full disk, the error itself matters more
                _end(target, status, began, error=f"{type(error).__name__}: {error}"[:500])
        if isinstance(error, OSError) and error.errno in FULL:
            where = f": {error.filename}" if error.filename else ""
            hint = "free some space and give the same command again: it resumes from the last checkpoint"
            raise UserError(f"{shown(target.path)}: {error.strerror}{where}", hint, MACHINE) from error
        raise
    events = [entry["about"] for entry in target.entries() if entry.get("event") == CHANGED]
    changed = list(dict.fromkeys([*run.changed(), *(field for event in events for field in event["fields"])]))
    allowed = {field for event in events if event["allowed"] for field in event["fields"]}
    _end(target, "finished", began, **({"key": "", "changed": changed} if changed else {}))
    checkpoints.clear(target)
    if faults := [field for field in changed if field not in allowed]:
        raise UserError(
            [f"{shown(target.path)}: changed while it ran: {field}" for field in faults],
            hint="the model and its scores are kept but never reused; add --overwrite to train on the changed files",
        )


def _end(target: RunFolder, status: str, began: float, **more: Any) -> None:
    info = target.info()
    seconds = round(info.get("seconds", 0.0) + time.monotonic() - began, 1)
    write_json(target.record, {**info, "status": status, "ended": now(), "seconds": seconds, **more})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
