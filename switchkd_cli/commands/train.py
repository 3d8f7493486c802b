"""`switchkd pretrain` and `switchkd distill`: train rows of a recipe, score them, and print their table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from switchkd_cli.commands.dry_run import show_plans
from switchkd_cli.distributed.launch_config import is_distributed, is_first
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.find import find
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch, pool
from switchkd_cli.scheduler.pool import exit_code, show_failures
from switchkd_cli.scheduler.run_options import RunOptions
from switchkd_cli.terminal import console


def train(
    recipe: str | None,
    overrides: Sequence[str],
    row: str | None,
    options: RunOptions,
    jobs: int = 1,
    *,
    leading: bool = False,
) -> list[RunFolder]:
    """Train a row and its controls, or with `leading` only the row's stages before the first that needs a teacher.

    Returns the folders of the finished runs: none from a dry run, and from all processes but the first.

    With --resume, `recipe` may also be a run's folder, or None: the run that was interrupted last. All runs are checked
    before the first one starts; the first failure ends the command.
    """
    config = options.launch_config()
    if options.resume and (folder := _interrupted(recipe, overrides, options.out)) is not None:
        planned: Sequence[Run] = [folder.run()]
        file, options = folder.recipe, replace(options, out=folder.root)
    elif recipe is None:
        raise UserError("which recipe?", hint="switchkd distill recipes/quickstart.yaml")
    else:
        file = find(recipe)
        planned = load_rows(file, [row], overrides, options.seed, options.world, controls=not leading)
        if leading:
            planned = [planned[0].leading()]
    if options.dry_run:
        show_plans(planned, [file], options, config)
        return []
    if config is not None:
        pool.relaunch(planned, config)
        return []
    launch.prepare(planned, options)
    if jobs > 1 and not is_distributed():
        if failures := pool.in_workers(planned, options, jobs=jobs, stop_at_failure=True):
            show_failures(failures)
            raise SystemExit(exit_code(failures))
    else:
        for run in planned:
            launch.run_one(run, options)
    if not is_first():
        return []
    folders = [run_folder.folder(options.out, run) for run in planned]
    if planned[0].config.evaluation is None:
        console.say("\n".join(f"model: {folder.model}" for folder in folders))
        return folders
    from switchkd_cli.report.show import print_distillation

    print_distillation(folders, launch.teacher_results(planned[0], options.out))
    return folders


def _interrupted(name: str | None, overrides: Sequence[str], root: Path) -> RunFolder | None:
    """The run folder of that name, or of the newest unfinished run when there is no name.

    None for a recipe's name. Raises UserError when there is no unfinished run, and for overrides.
    """
    if name is None:
        folder = run_folder.newest(root, interrupted=True)
    elif not (folder := RunFolder(Path(name).absolute())).record.exists():
        return None
    if overrides:
        problem = f"{overrides[0]}: overrides can't be combined with resuming a run"
        raise UserError(problem, hint="leave KEY=VALUE out, or name the recipe instead of the run")
    return folder
