"""What `--dry-run` prints: the plan of each run of a command, then what all of them need together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from switchkd_cli.distributed.launch_config import LaunchConfig
from switchkd_cli.planning import preflight
from switchkd_cli.planning.estimate import RunEstimate, planned_machine
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import run_folder
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console, plan_table


def show_plans(
    runs: Sequence[Run],
    root: Path,
    machine: str | None,
    files: Sequence[Path],
    world: str | None,
    launch_config: LaunchConfig | None = None,
) -> None:
    """Print the plan of each different run, then of all. Every problem is reported before the engine is imported."""
    gpus = launch_config.world_size if launch_config else None
    machines = [
        planned_machine(machine, run.config.precision, **run.config.deepspeed.model_dump(), gpus=gpus) for run in runs
    ]
    if gpus is not None:
        preflight.check_batches(runs, gpus)
    planned = {run_folder.folder(root, run).model: run for file in files for run in load_rows(file, world=world)}
    preflight.check(runs, planned)
    estimates: list[RunEstimate] = []
    first: dict[str, Run] = {}
    for run, on in zip(runs, machines, strict=True):
        if (same := first.setdefault(run.key, run)) is not run:
            console.show_same(run, same)
            continue
        console.show_plan(preflight.plan(run, root))
        before = estimates[-1] if estimates else None
        estimates.append(launch.estimate(run, on, root, planned))
        plan_table.show_run(estimates[-1], before)
    plan_table.show_all(estimates)


def show_counts(runs: Sequence[Run], root: Path) -> None:
    """Print how many runs all recipes and seeds make, and how many of them are finished."""
    seeds = dict.fromkeys(run.seed for run in runs)
    keys, finished = {run.key for run in runs}, run_folder.by_key(root)
    first = " (the figures are of the first)" if len(seeds) > 1 else ""
    console.say(f"seeds: {', '.join(map(str, seeds))}{first}")
    console.say(f"runs: {len(runs)}, of them {len(keys)} different; {len(keys & finished.keys())} finished")
