"""Who may write into a run folder: one process at a time, and never over another run."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from switchkd_cli import provenance
from switchkd_cli.errors import UserError
from switchkd_cli.locks import InUse, hold
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import RunFolder, folder, write_json

State = Literal["new", "finished"]


@contextmanager
def occupy(root: Path, run: Run, *, overwrite: bool = False) -> Iterator[tuple[RunFolder, State]]:
    """Hold the run's folder for as long as the block lasts.

    "finished": the same run is there and done. "new": an empty folder with the resolved recipe; how the
    block ends decides what run.json says. A UserError before the first step leaves nothing behind.
    Raises UserError when the folder holds another run, or another process holds the folder.
    """
    target = folder(root, run)
    with alone(target):
        if content(target, run) == "finished" and not overwrite:
            yield target, "finished"
        else:
            aside = make_room(target, run, overwrite=overwrite)
            _start(target, run)
            yield from _recorded(target, aside)


@contextmanager
def alone(target: RunFolder) -> Iterator[None]:
    """Be the only process inside such a block for a run's folder. Raises UserError when another one is."""
    try:
        with hold(target.path, wait=False):
            yield
    except InUse:
        hint = "wait for it, or add --out FOLDER to write elsewhere"
        raise UserError(f"{_shown(target.path)}: in use by a running process", hint=hint) from None


def content(target: RunFolder, run: Run) -> Literal["new", "finished", "unfinished", "other"]:
    """What the folder holds, as far as this run is concerned."""
    if not target.path.exists() or not any(target.path.iterdir()):
        return "new"
    info = target.info()
    if info.get("key") != run.key:
        return "other"
    return "finished" if info.get("status") == "finished" else "unfinished"


def is_finished(root: Path, run: Run) -> bool:
    """Whether the run is done, under its own name."""
    return content(folder(root, run), run) == "finished"


def check_free(root: Path, run: Run) -> None:
    """Raise UserError when the run's folder holds another run."""
    target = folder(root, run)
    if content(target, run) == "other":
        raise UserError(
            f"{_shown(target.path)}: holds another run (made by another recipe text or with another input)",
            hint="add --overwrite to move it aside, or --out FOLDER to write elsewhere",
        )


def make_room(target: RunFolder, run: Run, *, overwrite: bool) -> Path | None:
    """Move what is in the way aside, if it may be. Returns where it went."""
    found = content(target, run)
    if found == "new":
        return None
    if not overwrite:
        check_free(target.root, run)
    word = "unfinished" if found == "unfinished" else "old"
    number = 1
    while (aside := target.path.with_name(f"{word}-{target.path.name}-{number}")).exists():
        number += 1
    target.path.rename(aside)
    print(f"{_shown(target.path)}: {word} run moved to {aside.name}, starting afresh", file=sys.stderr)
    return aside


@contextmanager
def built(target: RunFolder) -> Iterator[RunFolder]:
    """Give an empty folder to fill, which becomes the run's when the block ends well: whole or not at all."""
    partial = RunFolder(target.path.with_name(f".{target.path.name}.partial"))
    shutil.rmtree(partial.path, ignore_errors=True)  # left by a process that was killed
    try:
        partial.path.mkdir(parents=True)
        yield partial
        partial.path.rename(target.path)
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)


def _start(target: RunFolder, run: Run) -> None:
    record = {
        "status": "running",
        "recipe": run.recipe,
        "row": run.row,
        "title": run.title,
        "paper": dict(run.paper),
        "seed": run.seed,
        "key": run.key,
        "command": provenance.command(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
        "started": now(),
    }
    with built(target) as partial:
        partial.recipe.write_text(run.text, encoding="utf-8")
        write_json(partial.record, record)


def _recorded(target: RunFolder, aside: Path | None) -> Iterator[tuple[RunFolder, State]]:
    """Run the block and write down how it ended."""
    began = time.monotonic()
    try:
        yield target, "new"
    except BaseException as error:
        if isinstance(error, UserError) and not _stepped(target):
            shutil.rmtree(target.path)
            if aside is not None:
                aside.rename(target.path)
        else:
            _end(target, "failed", began, error=f"{type(error).__name__}: {error}"[:500])
        raise
    _end(target, "finished", began)


def _end(target: RunFolder, status: str, began: float, **more: str) -> None:
    seconds = round(time.monotonic() - began, 1)
    write_json(target.record, {**target.info(), "status": status, "ended": now(), "seconds": seconds, **more})


def _stepped(target: RunFolder) -> bool:
    """Whether a training step was logged."""
    return target.metrics.exists() and '"step"' in target.metrics.read_text(encoding="utf-8")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _shown(path: Path) -> str:
    """The path as the user would write it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
