"""`switchkd distill`: train one row of a recipe and its controls, score them, and print their table."""

from __future__ import annotations

from collections.abc import Sequence

from switchkd_cli.commands.dry_run import show_plans
from switchkd_cli.commands.options import RunOptions
from switchkd_cli.commands.recipe_or_run import planned_runs
from switchkd_cli.distributed.launch_config import is_distributed, is_first
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.runs import run_folder
from switchkd_cli.scheduler import launch, pool
from switchkd_cli.scheduler.failures import exit_code, show_failures
from switchkd_cli.terminal import console


def distill(recipe: str | None, overrides: Sequence[str], row: str | None, jobs: int, options: RunOptions) -> None:
    """All runs are checked before the first one starts; the first failure ends the command."""
    config = options.launch_config()
    planned, root, file = planned_runs(
        recipe,
        overrides,
        options,
        lambda file: load_rows(file, [row], overrides, options.seed, options.world, controls=True),
    )
    if options.dry_run:
        return show_plans(planned, root, options.machine, [file], options.world, config)
    if config is not None:
        return pool.relaunch(planned, config)
    overwrite, resume = options.overwrite, options.resume
    launch.prepare(planned, root, overwrite=overwrite)
    if jobs > 1 and not is_distributed():
        failures = pool.in_workers(planned, root, jobs=jobs, overwrite=overwrite, resume=resume, stop_at_failure=True)
        if failures:
            show_failures(failures)
            raise SystemExit(exit_code(failures))
    else:
        for run in planned:
            launch.run_one(run, root, overwrite=overwrite, resume=resume)
    if not is_first():
        return
    folders = [run_folder.folder(root, run) for run in planned]
    if planned[0].config.evaluation is None:
        return console.say("\n".join(f"model: {folder.model}" for folder in folders))
    from switchkd_cli.report.show import print_distillation

    print_distillation(folders, launch.teacher_results(planned[0], root))
