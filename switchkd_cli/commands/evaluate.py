"""`switchkd eval`: score a model on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from switchkd_cli.benchmarks import BENCHMARKS, TEN
from switchkd_cli.commands.options import EvalOptions, comma_separated
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.fingerprint import Fingerprints
from switchkd_cli.recipe.model_paths import locate
from switchkd_cli.recipe.run import digest
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console

ITEMS = 200  # default number of questions of each benchmark, for a model that is not from a run


def evaluate(options: EvalOptions) -> RunFolder:
    """Score a model, print its scores, and return the folder that holds them and the answers."""
    model, root = options.model, options.out
    names = comma_separated(options.benchmarks)
    if unknown := [name for name in names or () if name not in BENCHMARKS]:
        known = [f"{name!r}{did_you_mean(name, BENCHMARKS)}" for name in unknown]
        raise UserError([f"--benchmarks: unknown benchmark, got {name}" for name in known])
    folder = run_folder.newest(root) if model is None else finished_run(model)
    # the command line's options, then those of the run's recipe, then the paper's ten benchmarks
    recipe = folder.run().config.evaluation if folder else None
    fields: dict[str, Any] = recipe.model_dump() if recipe else {"benchmarks": TEN}
    if recipe is None and options.world != "hub":
        fields["items"] = ITEMS
    asked = {"benchmarks": names, "split": options.split, "items": options.items, "world": options.world}
    fields |= {key: value for key, value in asked.items() if value is not None}
    try:
        question = Evaluation.model_validate(fields).model_dump(mode="json")
    except ValidationError as error:
        raise UserError([f"--{e['loc'][0]}: {e['msg']}, got {e['input']!r}" for e in error.errors()]) from None
    local = [name for name in question["benchmarks"] if not BENCHMARKS[name].published]
    if question["world"] == "hub" and local:
        raise UserError(f"--benchmarks: only in the playground, not with --world hub: {', '.join(local)}")
    path = locate(str(folder.model) if folder else str(model))
    key = digest(path, Fingerprints().named(path), question)
    results, where = launch.evaluate(path, root, key, {**question, "allow_pickle": options.allow_pickle})
    for note in results.get("notes", ()):
        console.say(f"note: {note}")
    from switchkd_cli.report.stats.yes_no import completed
    from switchkd_cli.report.tables.footnotes import faults

    results = completed(results, where / "answers")
    console.show_scores(model or str(folder and folder.path), results)
    for note in faults({"this model": [results]}):
        console.say(note)
    console.say(f"files: {where}")
    return RunFolder(where)


def finished_run(name: str) -> RunFolder | None:
    """The finished run in a folder; None when it is not a run's folder. Raises UserError for an unfinished run."""
    folder = RunFolder(Path(name).absolute())
    if not folder.record.exists():
        return None
    if (status := folder.info().get("status", "unknown")) != "finished":
        raise UserError(f"{name}: not finished ({status})", hint="give the same command again to run it")
    return folder
