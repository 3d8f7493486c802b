"""What `--dry-run` prints of the runs of a command, and what they come down to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from switchkd_cli.distributed.launch_config import LaunchConfig
from switchkd_cli.planning import estimate, preflight
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import run_folder
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console, plan_table


def show_plans(
    planned: Sequence[Run],
    root: Path,
    machine: str | None,
    files: Sequence[Path],
    world: str | None,
    launch_config: LaunchConfig | None = None,
) -> None:
    """The plan of each different run, then of all; each wrong thing is told before the engine is imported."""
    gpus = launch_config.world_size if launch_config else None
    machines = [
        estimate.machine(machine, run.config.precision, **run.config.deepspeed.model_dump(), gpus=gpus)
        for run in planned
    ]
    if gpus is not None:
        preflight.check_shared(planned, gpus)
    made = {run_folder.folder(root, run).model: run for file in files for run in load_rows(file, world=world)}
    preflight.check(planned, made)
    shown = []
    first: dict[str, Run] = {}
    for run, on in zip(planned, machines, strict=True):
        if (same := first.setdefault(run.key, run)) is not run:
            console.show_same(run, same)
            continue
        console.show_plan(preflight.plan(run, root))
        shown.append(launch.forecast(run, on, root, made))
        plan_table.show_run(*shown[:-3:-1])
    plan_table.show_all(shown)


def show_counts(planned: Sequence[Run], root: Path) -> None:
    """What all seeds of all recipes come down to."""
    seeds = dict.fromkeys(run.seed for run in planned)
    keys, made = {run.key for run in planned}, run_folder.by_key(root)
    console.say(
        f"seeds: {', '.join(map(str, seeds))}{' (the figures are of the first)' if len(seeds) > 1 else ''}"
    )
    console.say(f"runs: {len(planned)}, of them {len(keys)} different; {len(keys & made.keys())} finished")
