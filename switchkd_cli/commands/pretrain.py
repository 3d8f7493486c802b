"""`switchkd pretrain`: train the leading stages that need no teacher."""

from __future__ import annotations

from collections.abc import Sequence

from switchkd_cli.commands.dry_run import show_plans
from switchkd_cli.commands.options import RunOptions
from switchkd_cli.commands.recipe_or_run import planned_runs
from switchkd_cli.distributed.launch_config import is_first
from switchkd_cli.recipe.load import load
from switchkd_cli.scheduler import launch, pool
from switchkd_cli.terminal import console


def pretrain(recipe: str | None, overrides: Sequence[str], row: str | None, options: RunOptions) -> None:
    config = options.launch_config()
    (run,), root, file = planned_runs(
        recipe, overrides, options, lambda file: [load(file, row, overrides, options.seed, options.world).leading()]
    )
    if options.dry_run:
        return show_plans([run], root, options.machine, [file], options.world, config)
    if config is not None:
        return pool.relaunch([run], config)
    launch.prepare([run], root, overwrite=options.overwrite)
    folder = launch.run_one(run, root, overwrite=options.overwrite, resume=options.resume)
    if is_first():
        console.say(f"model: {folder.model}")
