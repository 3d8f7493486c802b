"""A finished run under the name of another row: recipes have rows in common, and none is trained or scored twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from switchkd_cli.files.atomic import atomic_folder, link_files, write_json, write_text
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import provenance
from switchkd_cli.runs.claim import alone, content, make_room, now
from switchkd_cli.runs.run_folder import RunFolder


@contextmanager
def taken_over(
    run: Run, source: RunFolder, target: RunFolder, *, overwrite: bool = False
) -> Iterator[RunFolder | None]:
    """Make the run's folder `target` of `source`, a finished run with the same key: the same files, its own names.

    Gives the folder as long as it is not in its place yet, for what else bears the run's name; None when the run
    is finished. What was measured stays as it was: run.json keeps the times, versions and command of the run that
    was trained and scored, and says in "reused" which one that was. Raises UserError as `occupy` does.
    """
    with alone(target):
        if content(target, run) == "finished" and not overwrite:
            yield None
            return
        with atomic_folder(target.path, replace=False) as path:
            partial = RunFolder(path)
            own = {source.recipe.name, source.record.name, source.text_log.name}  # each run's differ
            link_files(source.path, partial.path, exclude=own)
            write_text(partial.recipe, run.text)
            write_json(partial.record, _record(run, source))
            yield partial
            make_room(target, run, overwrite=overwrite)


def _record(run: Run, source: RunFolder) -> dict[str, Any]:
    info = source.info()
    own = {"recipe": run.recipe, "row": run.row, "title": run.title, "paper": dict(run.paper)}
    made_as = info.get("reused", {}).get("from", source.place)
    reused = {"from": made_as, "at": now(), "command": provenance.command()}
    return {**info, **own, "reused": reused}
