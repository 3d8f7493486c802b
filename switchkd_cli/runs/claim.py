"""Who may write into a run folder: one process at a time, and never over another run.

An unfinished run is gone on with, not started again: its key says that recipe, models and data are the same, so both
would give the same numbers, and the one costs less. Where the program itself has changed since, that is asked.
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
from switchkd_cli.files.locks import InUse, hold
from switchkd_cli.recipe.run import Run, changed_fields
from switchkd_cli.runs import checkpoints, provenance
from switchkd_cli.runs.resume import Standing, go_on, standing
from switchkd_cli.runs.run_folder import RunFolder, folder, set_aside, shown

State = Literal["new", "finished", "resumed"]
CHANGED = "inputs_changed"  # the event of a stage that was trained on something else than its key says


@contextmanager
def occupy(
    root: Path, run: Run, *, overwrite: bool = False, resume: bool = False
) -> Iterator[tuple[RunFolder, State]]:
    """Hold the run's folder for as long as the block lasts.

    "finished": the same run is there and done. "resumed": it was left unfinished, and the folder is as it was at the
    moment that it goes on from. "new": an empty folder with the resolved recipe. How the block ends decides what
    run.json says. A UserError before the first step of a new run leaves nothing behind. `resume` goes on although
    the program has changed since. Raises UserError when the folder holds another run, or another process holds it.
    """
    target = folder(root, run)
    with alone(target):
        if content(target, run) == "finished" and not overwrite:
            checkpoints.clear(target)  # left when the run was killed at its very end
            yield target, "finished"
        elif not overwrite and (at := _unfinished(target, run)) is not None:
            if not resume:
                _check_unchanged(target, at)
            _go_on(target, at)
            yield from _recorded(target, run, None, "resumed")
        else:
            aside = make_room(target, run, overwrite=overwrite)
            _start(target, run)
            yield from _recorded(target, run, aside)


@contextmanager
def alone(target: RunFolder) -> Iterator[None]:
    """Be the only process inside such a block for a run's folder. Raises UserError when another one is."""
    try:
        with hold(target.path, wait=False):
            yield
    except InUse as held:
        hint = "wait for it, or add --out FOLDER to write elsewhere"
        raise UserError(f"{shown(target.path)}: in use by a running process: {held}", hint=hint) from None


def content(target: RunFolder, run: Run) -> Literal["new", "finished", "interrupted", "unfinished", "other"]:
    """What the folder holds, as far as this run is concerned; what was interrupted can be gone on with."""
    if not target.path.exists() or all(path.name.startswith(".") for path in target.path.iterdir()):
        return "new"  # or killed before its record was whole
    info = target.info()
    if info.get("key") != run.key:
        return "other"
    if info.get("status") == "finished":
        return "finished"
    return "interrupted" if checkpoints.marks(target) else "unfinished"


def is_finished(root: Path, run: Run) -> bool:
    """Whether the run is done, under its own name."""
    return content(folder(root, run), run) == "finished"


def check_free(root: Path, run: Run) -> None:
    """Raise UserError when the run's folder holds another run."""
    target = folder(root, run)
    if content(target, run) == "other":
        raise UserError(
            f"{shown(target.path)}: holds another run ({_difference(target, run)})",
            hint="add --overwrite to move it aside, or --out FOLDER to write elsewhere",
        )


def _difference(target: RunFolder, run: Run) -> str:
    """In what the run that a folder holds is another one, as far as it is known."""
    inputs = target.info().get("inputs")
    if inputs and (changed := changed_fields(inputs, run.inputs)):
        return f"changed since: {', '.join(changed)}"
    return "of another recipe text, or made by another version of switchkd"


def _unfinished(target: RunFolder, run: Run) -> Standing | None:
    """Where the run stands that was left here, if this one was."""
    return standing(target, run) if content(target, run) == "interrupted" else None


def _check_unchanged(target: RunFolder, at: Standing) -> None:
    """Raise UserError when the run was begun by another program than this one."""
    if changed := another_program(target):
        raise UserError(
            [f"{shown(target.path)}: interrupted at {at}, and begun with {told}" for told in changed],
            hint="add --resume to go on all the same, or --overwrite to start again",
        )


def another_program(target: RunFolder) -> list[str]:
    """Versions, and the commit, that are not what the run was begun with."""
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


def _go_on(target: RunFolder, at: Standing) -> None:
    for fault in at.faults:
        print(f"{shown(target.path)}: {fault}: not used", file=sys.stderr)
    print(f"{shown(target.path)}: interrupted, goes on from {at}", file=sys.stderr)
    go_on(target, at)
    info = target.info()
    entry = {
        "at": now(),
        "stage": at.stage,
        "step": at.step,
        "command": provenance.command(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        **({"not_used": list(at.faults)} if at.faults else {}),
    }
    kept = {key: value for key, value in info.items() if key not in ("ended", "error")}
    write_json(target.record, {**kept, "status": "running", "resumed": [*info.get("resumed", []), entry]})


def make_room(target: RunFolder, run: Run, *, overwrite: bool) -> Path | None:
    """Move what is in the way aside, if it may be. Returns where it went."""
    found = content(target, run)
    if found == "new":
        return None
    if not overwrite:
        check_free(target.root, run)
    word = "unfinished" if found in ("unfinished", "interrupted") else "old"
    aside = set_aside(target.path, word)
    print(f"{shown(target.path)}: {word} run moved to {aside.name}, starting afresh", file=sys.stderr)
    return aside


def _start(target: RunFolder, run: Run) -> None:
    for left in target.path.glob(f".{target.record.name}.*"):
        left.unlink()
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


def _recorded(
    target: RunFolder, run: Run, aside: Path | None, state: State = "new"
) -> Iterator[tuple[RunFolder, State]]:
    """Run the block and write down how it ended."""
    began = time.monotonic()
    try:
        yield target, state
    except BaseException as error:
        if isinstance(error, UserError) and state == "new" and not _stepped(target):
            shutil.rmtree(target.path)
            if aside is not None:
                shutil.move(aside, target.path)
        else:
            status = "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            with suppress(OSError):  # a full disk: what went wrong is told all the same
                _end(target, status, began, error=f"{type(error).__name__}: {error}"[:500])
        if isinstance(error, OSError) and error.errno in FULL:
            where = f": {error.filename}" if error.filename else ""
            hint = "free some space and give the same command again: it goes on from the last checkpoint"
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
            hint="the model and its scores are kept there and never reused; add --overwrite to train on what is there now",
        )


def _end(target: RunFolder, status: str, began: float, **more: Any) -> None:
    info = target.info()
    seconds = round(info.get("seconds", 0.0) + time.monotonic() - began, 1)
    write_json(target.record, {**info, "status": status, "ended": now(), "seconds": seconds, **more})


def _stepped(target: RunFolder) -> bool:
    """Whether a training step was logged."""
    return target.metrics.exists() and '"step"' in target.metrics.read_text(encoding="utf-8")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
