"""`switchkd pretrain`, `distill` and `ablate`: train rows of recipes, score them, and print their tables."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from switchkd_cli.commands.dry_run import show_plans
from switchkd_cli.commands.options import AblateOptions, TrainOptions, comma_separated
from switchkd_cli.distributed.launch_config import cores, is_distributed, is_first
from switchkd_cli.errors import UserError
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.load import load_many, load_rows
from switchkd_cli.recipe.named_files import find, find_or_none
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import is_finished
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch, pool
from switchkd_cli.scheduler.pool import Failure, check_failures
from switchkd_cli.terminal import console


def train(options: TrainOptions, jobs: int = 1, *, leading: bool = False) -> list[RunFolder]:
    """Train a row and its controls, or with `leading` only the row's stages before the first that needs a teacher.

    Returns the folders of the finished runs: none from a dry run, and from all processes but the first.

    With --resume, the recipe may also be a run's folder, or None: the run that was interrupted last. All runs are checked
    before the first one starts; the first failure ends the command.
    """
    config, recipe, overrides = options.launch_config(), options.recipe, options.changes(options.overrides)
    if options.resume and (folder := _interrupted(recipe, overrides, options.out)) is not None:
        planned: Sequence[Run] = [folder.run()]
        file, options = folder.recipe, replace(options, out=folder.root)
    elif recipe is None:
        raise UserError("which recipe?", hint="switchkd distill recipes/quickstart.yaml")
    else:
        file = find(recipe)
        planned = load_rows(file, [options.row], overrides, options.seed, options.world, controls=not leading)
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
        failures = pool.in_workers(planned, options, jobs=jobs, teachers=planned[:1], keep_going=False)
        check_failures(failures, planned)
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


def ablate(options: AblateOptions) -> list[RunFolder]:
    """Run the rows of recipes over several seeds, as one matrix of runs, then print a table per recipe.

    Returns the folders of the finished runs, in the order of the tables.
    """
    config, root, words = options.launch_config(), options.out, options.changes(options.recipes)
    row_names = comma_separated(options.rows)
    if row_names is not None and not row_names:
        raise UserError("--rows: names no row", hint="leave it out for all rows, or --rows switch-kd,sft")
    changes = [word for word in words if _is_change(word)]
    names = [word for word in words if word not in changes]
    if not names:
        raise UserError("ablate: names no recipe", hint=f"switchkd ablate components {' '.join(words)}")
    tables = load_many(names, row_names, changes, options.seeds, options.seed, options.world)
    planned = [run for runs in tables.values() for run in runs]
    if options.dry_run:
        first = [run for runs in tables.values() for run in runs if run.seed == runs[0].seed]
        show_plans(first, list(tables), options, config)
        _show_counts(planned, root)
        return []
    if config is not None and (config.nodes > 1 or config.hostfile is not None):
        pool.relaunch(planned, config)
        return []
    teachers = [run for runs in tables.values() if (run := _teacher_run(runs)) is not None]
    failures: list[Failure] = []
    if is_distributed():  # one run after another; the first failure ends the command
        launch.prepare(planned, options)
        for run in planned:
            launch.run_one(run, options)
        if not is_first():
            return []
        for run in teachers:
            if run.config.evaluation is not None:
                launch.teacher_results(run, root)
    else:
        launch.check(planned)
        if config is not None:
            if (options.jobs or 1) > 1:
                problem = f"--jobs {options.jobs}: runs in several processes go one after another"
                raise UserError(problem, hint="leave it out")
            preflight.check_batches(planned, config.world_size)
        jobs = options.jobs or (min(2, cores()) if config is None else 1)
        failures = pool.in_workers(planned, options, jobs=jobs, teachers=teachers)
    for file, runs in tables.items():
        try:
            _print_table(file, runs, root)
        except UserError as error:
            failures.append(Failure(f"{file}: its table", error))
            failures[-1].show()
    check_failures(failures, planned)
    return [run_folder.folder(root, run) for run in planned if is_finished(root, run)]


def _is_change(word: str) -> bool:
    """Whether a word is `key=value`, or meant to be; a path may also contain a `=`, after its first `/`."""
    return "=" in word.partition("/")[0] or ("." in word and find_or_none(word) is None)


def _show_counts(runs: Sequence[Run], root: Path) -> None:
    """Print how many runs all recipes and seeds make, and how many of them are finished."""
    seeds = dict.fromkeys(run.seed for run in runs)
    keys, finished = {run.key for run in runs}, run_folder.by_key(root)
    first = " (the figures are of the first)" if len(seeds) > 1 else ""
    console.say(f"seeds: {', '.join(map(str, seeds))}{first}")
    console.say(f"runs: {len(runs)}, of them {len(keys)} different; {len(keys & finished.keys())} finished")


def _teacher_run(planned: Sequence[Run]) -> Run | None:
    """A run with the teacher of all rows; None when rows have several, as a table has one line for it."""
    with_teacher = {run.teacher_key: run for run in planned if run.config.teacher is not None}
    return [*with_teacher.values(), *planned][0] if len(with_teacher) < 2 else None


def _print_table(file: Path, runs: Sequence[Run], root: Path) -> None:
    """Print the table of a recipe's finished runs. Raises UserError when they don't fit into one."""
    from switchkd_cli.report.show import print_ablation

    finished = [run_folder.folder(root, run) for run in runs if is_finished(root, run)]
    if not finished or runs[0].config.evaluation is None:
        reason = "no scores" if finished else "no finished run"
        return console.say(f"{file}: {reason}, so no table")
    run = _teacher_run(runs)
    teacher = None if run is None else launch.known_teacher_results(run, root)
    controls = [control.row for control in load_rows(file, [None], controls=True)[1:]]
    print_ablation(finished, teacher, planned=runs, controls=controls)
