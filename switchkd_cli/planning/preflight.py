"""What a run would do on this machine, checked before anything heavy is imported or written."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from switchkd_cli.errors import UserError
from switchkd_cli.planning import library_versions
from switchkd_cli.recipe.model_paths import locate
from switchkd_cli.recipe.run import Run, model_names
from switchkd_cli.recipe.schema import Stage
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import folder_state


@dataclass(frozen=True)
class StagePlan:
    """A stage, and whether its output is already there."""

    stage: Stage
    reused: bool


@dataclass(frozen=True)
class Plan:
    """A run, its folder, what the folder holds (`state`), and its stages."""

    run: Run
    folder: run_folder.RunFolder
    state: str
    stages: tuple[StagePlan, ...]


def plan(run: Run, root: Path) -> Plan:
    """Return what the run would do; nothing is written."""
    folder = run_folder.folder(root, run)
    done = [run_folder.stage(root, run.stage_key(i)).done for i in range(len(run.config.stages))]
    last = max((i for i, is_done in enumerate(done) if is_done), default=-1)
    stages = tuple(StagePlan(stage, i <= last) for i, stage in enumerate(run.config.stages))
    return Plan(run, folder, folder_state(folder, run), stages)


def check(runs: Iterable[Run], planned: Collection[Path] = ()) -> None:
    """Raise UserError naming every model of the runs that is not on this machine and can't be on a hub.

    Folders that other runs will have made by then (`planned`) may be missing. Raise it with code MACHINE for a library
    that is missing or outside its range: better now than after training.
    """
    runs = list(runs)
    problems: list[str] = []
    hints: list[str] = []
    for run in runs:
        models = (*model_names("student", run.config.student), *model_names("teacher", run.config.teacher))
        for field, name in models:
            if Path(name).absolute() in planned:
                continue
            try:
                locate(name)
            except UserError as error:
                problems += [f"{run.recipe}: {field}: {problem}" for problem in error.problems]
                hints.append(error.hint)
    if problems:
        raise UserError(list(dict.fromkeys(problems)), hint="; ".join(filter(None, dict.fromkeys(hints))))
    library_versions.check(scoring=any(run.config.evaluation for run in runs))


def check_batches(runs: Iterable[Run], processes: int) -> None:
    """Raise UserError naming every batch that can't be split evenly among the processes."""
    uneven = [stage for run in runs for stage in run.config.stages if stage.batch % processes]
    if uneven:
        must = f"must be a multiple of the {processes} processes"
        problems = [f"stages.{stage.name}.batch: {must}, got {stage.batch}" for stage in uneven]
        smallest = min(stage.batch for stage in uneven)
        divisor = max(n for n in range(1, processes) if smallest % n == 0)
        raise UserError(list(dict.fromkeys(problems)), hint=f"--gpus {divisor}, or change the batch")
