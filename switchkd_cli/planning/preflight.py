"""What a run would do on this machine, before anything heavy is imported or written."""

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
    """A stage and whether its output is already there."""

    stage: Stage
    reused: bool


@dataclass(frozen=True)
class Plan:
    """A run, where it goes, what is there, and its stages."""

    run: Run
    folder: run_folder.RunFolder
    state: str
    stages: tuple[StagePlan, ...]


def plan(run: Run, root: Path) -> Plan:
    """What the run would do; nothing is written."""
    folder = run_folder.folder(root, run)
    built = [run_folder.stage(root, run.stage_key(i)).done for i in range(len(run.config.stages))]
    last = max((i for i, there in enumerate(built) if there), default=-1)
    stages = tuple(StagePlan(stage, i <= last) for i, stage in enumerate(run.config.stages))
    return Plan(run, folder, folder_state(folder, run), stages)


def check(planned: Iterable[Run], made: Collection[Path] = ()) -> None:
    """Raise UserError naming every model of the runs that is not on this machine and can't be on a hub.

    Folders that other runs will have `made` by then may be missing.
    And, with code MACHINE, for a library that is missing or outside its range: better now than after training.
    """
    planned = list(planned)
    problems: dict[str, None] = {}
    hints: dict[str, None] = {}
    for run in planned:
        for field, name in (
            *model_names("student", run.config.student),
            *model_names("teacher", run.config.teacher),
        ):
            if Path(name).absolute() in made:
                continue
            try:
                locate(name)
            except UserError as error:
                problems.update({f"{run.recipe}: {field}: {problem}": None for problem in error.problems})
                hints[error.hint] = None
    if problems:
        raise UserError(list(problems), hint="; ".join(filter(None, hints)))
    library_versions.check(scoring=any(run.config.evaluation for run in planned))


def check_shared(planned: Iterable[Run], processes: int) -> None:
    """Raise UserError naming every batch that can't be shared out evenly among the processes."""
    stages = [stage for run in planned for stage in run.config.stages if stage.batch % processes]
    problems = {
        f"stages.{stage.name}.batch: must be a multiple of the {processes} processes, got {stage.batch}": stage
        for stage in stages
    }
    if problems:
        batch = min(stage.batch for stage in problems.values())
        fits = max(n for n in range(1, processes) if batch % n == 0)
        raise UserError(list(problems), hint=f"--gpus {fits}, or change the batch")
