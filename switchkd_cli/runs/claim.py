"""Exclusive access to a run folder: a new run, one that resumes, or one that reuses a finished run of another name.

The run's key says that recipe, models and data are the same, so resuming gives what a new start would give, for less.
If code or versions changed, `--resume` is required. Recipes share rows, and each is trained and scored once.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from switchkd_cli.distributed.stopping import Stopped
from switchkd_cli.errors import FULL, UserError, shown
from switchkd_cli.files.atomic import atomic_folder, hold, link_files, write_json, write_text
from switchkd_cli.recipe.run import Run, changed_fields
from switchkd_cli.runs import checkpoints, provenance
from switchkd_cli.runs.checkpoints import ResumePoint, resume_point, rewind
from switchkd_cli.runs.run_folder import RunFolder, folder, set_aside

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
    with hold(target.path, wait=False):
        state = folder_state(target, run)
        point = resume_point(target, run) if state == "interrupted" and not overwrite else None
        if state == "finished" and not overwrite:
            shutil.rmtree(target.checkpoints, ignore_errors=True)  # left when the run was killed at its very end
            yield target, "finished"
            return
        aside = None
        if point is not None:
            if not resume:
                check_versions(target, run)
            _resume(target, point)
        else:
            aside = make_room(target, run, overwrite=overwrite)
            _create(target, run)
        with _recorded(target, run, aside, is_new=point is None):
            yield target, "new" if point is None else "resumed"


@contextmanager
def taken_over(
    run: Run, source: RunFolder, target: RunFolder, *, overwrite: bool = False
) -> Iterator[RunFolder | None]:
    """Create the run's folder `target` from `source`, a finished run with the same key: the same files, its own names.

    Gives the new folder before it is in its place, for whatever else holds the run's name; None when the run is
    already finished. Measurements stay: run.json keeps the times, versions and command of the run that was trained and
    scored, and names that run in "reused". Raises UserError as `claim_folder` does.
    """
    with hold(target.path, wait=False):
        if folder_state(target, run) == "finished" and not overwrite:
            yield None
            return
        with atomic_folder(target.path) as path:
            partial = RunFolder(path)
            own = {file.name for file in (source.recipe, source.record, source.text_log, source.trackers)}
            link_files(source.path, path, exclude=own)
            write_text(partial.recipe, run.text)
            info = source.info()
            trained_as = info.get("reused", {}).get("from", source.place)
            reused = {"from": trained_as, "at": now(), "command": provenance.command()}
            write_json(partial.record, {**info, **run.names, "reused": reused})
            yield partial
            make_room(target, run, overwrite=overwrite)


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
        problem = f"{shown(target.path)}: holds another run ({difference})"
        raise UserError(problem, hint="add --overwrite to move it aside, or --out FOLDER to write elsewhere")


def check_versions(target: RunFolder, run: Run) -> None:
    """Raise UserError when an interrupted run was begun with other code or versions."""
    if changed := changed_versions(target):
        where = f"{shown(target.path)}: interrupted at {resume_point(target, run)}"
        problems = [f"{where}, and begun with {change}" for change in changed]
        raise UserError(problems, hint="add --resume to resume all the same, or --overwrite to start again")


def changed_versions(target: RunFolder) -> list[str]:
    """Versions, and the commit, that differ from those that the run was begun with."""
    info, made_with = target.info(), provenance.made_with()
    before = {**(info.get("versions") or {}), "commit": info.get("commit")}
    current = {**made_with["versions"], "commit": made_with["commit"]}
    changed = changed_fields(before, current)
    return [f"{name} {before.get(name, 'absent')}, now {current.get(name, 'absent')}" for name in changed]


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
    not_used = {"not_used": list(point.faults)} if point.faults else {}
    entry = {"at": now(), "stage": point.stage, "step": point.step, **provenance.made_with(), **not_used}
    others = {key: value for key, value in info.items() if key not in ("ended", "error")}
    write_json(target.record, {**others, "status": "running", "resumed": [*info.get("resumed", []), entry]})


def _create(target: RunFolder, run: Run) -> None:
    record = {"status": "running", **run.names, "seed": run.seed, "key": run.key, "inputs": run.inputs}
    record |= {**provenance.made_with(), "machine": provenance.machine(), "started": now()}
    with atomic_folder(target.path) as partial:
        write_text(RunFolder(partial).recipe, run.text)
        write_json(RunFolder(partial).record, record)


@contextmanager
def _recorded(target: RunFolder, run: Run, aside: Path | None, *, is_new: bool) -> Iterator[None]:
    """Around a run: write down how it ended; a new one that failed before its first step is undone."""
    began = time.monotonic()
    try:
        yield
    except BaseException as error:
        undone = is_new and isinstance(error, UserError | ImportError)
        if undone and not any("step" in entry for entry in target.entries()):
            shutil.rmtree(target.path)
            if aside is not None:
                shutil.move(aside, target.path)
        else:
            status = "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            with suppress(OSError):  # on a full disk, the error itself matters more
                _end(target, status, began, error=f"{type(error).__name__}: {error}"[:500])
        if isinstance(error, OSError) and error.errno in FULL:
            error.add_note("free some space and give the same command again: it resumes from the last checkpoint")
        raise
    events = [entry["about"] for entry in target.entries() if entry.get("event") == CHANGED]
    changed = list(dict.fromkeys([*run.changed(), *(field for event in events for field in event["fields"])]))
    allowed = {field for event in events if event["allowed"] for field in event["fields"]}
    _end(target, "finished", began, **({"key": "", "changed": changed} if changed else {}))
    shutil.rmtree(target.checkpoints, ignore_errors=True)
    if faults := [field for field in changed if field not in allowed]:
        problems = [f"{shown(target.path)}: changed while it ran: {field}" for field in faults]
        hint = "the model and its scores are kept but never reused; add --overwrite to train on the changed files"
        raise UserError(problems, hint=hint)


def _end(target: RunFolder, status: str, began: float, **more: Any) -> None:
    info = target.info()
    seconds = round(info.get("seconds", 0.0) + time.monotonic() - began, 1)
    write_json(target.record, {**info, "status": status, "ended": now(), "seconds": seconds, **more})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
