"""`switchkd pretrain`, `distill` and `ablate`: train rows of recipes, score them, and print their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from switchkd_cli.commands.dry_run import show_plans
from switchkd_cli.commands.options import AblateOptions, TrainOptions, comma_separated
from switchkd_cli.distributed.launch_config import LaunchConfig, cores, is_distributed, is_first
from switchkd_cli.errors import UserError
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.load import load_many, load_rows
from switchkd_cli.recipe.named_files import find, find_or_none
from switchkd_cli.recipe.run import Run
from switchkd_cli.report.grouping import grouped
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch, pool
from switchkd_cli.scheduler.pool import Failure, check_failures
from switchkd_cli.scheduler.run_options import RunOptions
from switchkd_cli.terminal import console


class RunRequest(NamedTuple):
    """The runs of each recipe, and how they are to be run.

    In a `matrix` each run is the job of a worker process, and a failure ends that run alone; else it ends the command.
    """

    tables: Mapping[Path, Sequence[Run]]
    options: RunOptions
    config: LaunchConfig | None
    jobs: int
    matrix: bool


def one_row(options: TrainOptions, jobs: int = 1, *, leading: bool = False) -> RunRequest:
    """Read what pretrain and distill ask: a row and its controls, or with `leading` the row's stages before the first with a teacher.

    With --resume, the recipe may also be a run's folder, or None: the run that was interrupted last.
    """
    config, recipe, overrides = options.launch_config(), options.recipe, options.changes(options.overrides)
    chosen = {"--row": options.row, "--seed": options.seed, "--world": options.world}
    changes = [*overrides, *(name for name, value in chosen.items() if value is not None)]
    if options.resume and (folder := _interrupted(recipe, changes, options.out)) is not None:
        planned: Sequence[Run] = [folder.run()]
        file, options = folder.recipe, replace(options, out=folder.root)
    elif recipe is None:
        raise UserError("which recipe?", hint="switchkd distill recipes/quickstart.yaml")
    else:
        file = find(recipe)
        planned = load_rows(file, [options.row], overrides, options.seed, options.world, controls=not leading)
        if leading:
            planned = [planned[0].leading()]
    return RunRequest({file: planned}, options, config, jobs, matrix=False)


def _interrupted(name: str | None, changes: Sequence[str], root: Path) -> RunFolder | None:
    """The run folder of that name, or of the newest unfinished run when there is no name.

    None for a recipe's name. Raises UserError when there is no unfinished run, and for changes to it.
    """
    if name is None:
        folder = run_folder.newest(root, interrupted=True)
    elif not (folder := RunFolder(Path(name).absolute())).record.exists():
        return None
    if changes:
        problems = [f"{change}: can't be combined with resuming a run" for change in changes]
        raise UserError(problems, hint="leave it out, or name the recipe instead of the run")
    return folder


def rows_and_seeds(options: AblateOptions) -> RunRequest:
    """Read what ablate asks: the rows of recipes over several seeds, as one matrix of runs."""
    config, words = options.launch_config(), options.changes(options.recipes)
    row_names = comma_separated(options.rows)
    if row_names is not None and not row_names:
        raise UserError("--rows: names no row", hint="leave it out for all rows, or --rows switch-kd,sft")
    changes = [word for word in words if _is_change(word)]
    names = [word for word in words if word not in changes]
    if not names:
        raise UserError("ablate: names no recipe", hint=f"switchkd ablate components {' '.join(words)}")
    tables = load_many(names, row_names, changes, options.seeds, options.seed, options.world)
    jobs = options.jobs or (min(2, cores()) if config is None else 1)
    return RunRequest(tables, options, config, jobs, matrix=True)


def run_all(request: RunRequest) -> list[RunFolder]:
    """Plan, or train and score, the runs of each recipe, then print its table.

    Returns the folders of the finished runs, in the order of the tables: none from a dry run, and from all processes but the
    first. All runs are checked before the first one starts.
    """
    tables, options, config, jobs, matrix = request
    planned = [run for runs in tables.values() for run in runs]
    if options.dry_run:
        first = [own[0] for runs in tables.values() for own in grouped((run.row, run) for run in runs).values()]
        show_plans(first, list(tables), options, config)
        if matrix:
            _show_counts(planned, options.out)
        return []
    in_workers = (matrix or jobs > 1) and not is_distributed()
    launch.check(planned)
    preflight.check_batches(planned, config.world_size if config else 1)
    if config is not None:
        if not in_workers or config.nodes > 1 or config.hostfile is not None:
            _ = [run.key for run in planned]  # computed here first, so that the processes find the hashes of all files
            launch.start_processes(config)
            return []
        if jobs > 1:
            raise UserError(f"--jobs {jobs}: runs in several processes go one after another", hint="leave it out")
    scored = [run for runs in tables.values() if (run := run_folder.teacher_run(runs)) and run.config.evaluation]
    failures: list[Failure] = []
    launch.make_room(planned, options)
    if in_workers:
        failures = pool.in_workers(planned, options, jobs=jobs, teachers=scored, keep_going=matrix)
    else:
        for run in planned:
            launch.run_one(run, options)
        if not is_first():
            return []
        for run in scored:
            if run_folder.teacher_scores(options.out, [run]) is None:
                console.say("scoring the teacher and the baselines")
                launch.engine("run_stages").evaluate_teacher(run, options.out)
    for file, runs in tables.items() if matrix or not failures else ():
        try:
            _print_table(file, runs, options.out, matrix=matrix)
        except UserError as error:
            failures.append(Failure(f"{file}: its table", error))
            failures[-1].show()
    check_failures(failures, planned)
    return _finished(planned, options.out)


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


def _finished(runs: Sequence[Run], root: Path) -> list[RunFolder]:
    """The folders of the runs that finished: also of those whose inputs changed meanwhile, which have no key any more."""
    folders = {run_folder.folder(root, run): run.key for run in runs}
    infos = [(folder, key, folder.info()) for folder, key in folders.items()]
    return [folder for folder, key, info in infos if info.get("status") == "finished" and info.get("key") in (key, "")]


def _print_table(file: Path, runs: Sequence[Run], root: Path, *, matrix: bool) -> None:
    """Print the table of a recipe's finished runs. Raises UserError when they don't fit into one."""
    from switchkd_cli.report.results.finished_run import read
    from switchkd_cli.report.show import publish
    from switchkd_cli.report.tables.comparison import ablation, distillation

    finished = _finished(runs, root)
    if not finished or runs[0].config.evaluation is None:
        models = "\n".join(f"model: {folder.model}" for folder in finished)
        return console.say(models or f"{file}: no finished run, so no table")
    teacher = run_folder.teacher_scores(root, runs)
    scored = [read(folder) for folder in finished]
    if not matrix:
        return publish(distillation(scored, teacher), finished[0].path)
    controls = [control.row for control in load_rows(file, [None], controls=True)[1:]]
    publish(ablation(scored, teacher, planned=runs, controls=controls), finished[0].path.parents[1])
