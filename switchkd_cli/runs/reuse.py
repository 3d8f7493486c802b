"""Reuse a finished run under the name of another row: recipes share rows, and each is trained and scored once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from switchkd_cli.files.atomic import atomic_folder, link_files, write_json, write_text
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import provenance
from switchkd_cli.runs.claim import folder_state, make_room, now
from switchkd_cli.runs.run_folder import RunFolder, exclusive


@contextmanager
def taken_over(
    run: Run, source: RunFolder, target: RunFolder, *, overwrite: bool = False
) -> Iterator[RunFolder | None]:
    """Create the run's folder `target` from `source`, a finished run with the same key: the same files, its own names.

    Gives the new folder before it is in its place, for whatever else holds the run's name; None when the run is
    already finished. Measurements stay: run.json keeps the times, versions and command of the run that was trained and
    scored, and names that run in "reused". Raises UserError as `claim_folder` does.
    """
    with exclusive(target.path):
        if folder_state(target, run) == "finished" and not overwrite:
            yield None
            return
        with atomic_folder(target.path, replace=False) as path:
            partial = RunFolder(path)
            own_files = {source.recipe.name, source.record.name, source.text_log.name}
            link_files(source.path, path, exclude=own_files)
            write_text(partial.recipe, run.text)
            info = source.info()
            trained_as = info.get("reused", {}).get("from", source.place)
            own = {"recipe": run.recipe, "row": run.row, "title": run.title, "paper": dict(run.paper)}
            reused = {"from": trained_as, "at": now(), "command": provenance.command()}
            write_json(partial.record, {**info, **own, "reused": reused})
            yield partial
            make_room(target, run, overwrite=overwrite)
