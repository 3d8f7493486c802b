"""Rows of recipes over seeds: one matrix of all their runs, then each recipe's table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from switchkd_cli.commands.dry_run import show_counts, show_plans
from switchkd_cli.distributed.cpu_cores import cores
from switchkd_cli.distributed.launch_config import Spread, among_others, leads
from switchkd_cli.errors import UserError
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.find import find_or_none
from switchkd_cli.recipe.load import load_with_controls
from switchkd_cli.recipe.load_many import RecipeRuns, load_many
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import is_finished
from switchkd_cli.scheduler import launch, pool
from switchkd_cli.scheduler.failures import Failure, count, exit_code, show_failures
from switchkd_cli.scheduler.jobs import Entry
from switchkd_cli.terminal import console


def ablate(
    words: Sequence[str],
    rows: Sequence[str] | None,
    seeds: int,
    seed: int | None,
    world: str | None,
    root: Path,
    *,
    jobs: int | None,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    machine: str | None,
    spread: Spread | None = None,
) -> None:
    """`words` are recipes and, among them, changes (`key=value`) to each of them."""
    if rows is not None and not rows:
        raise UserError("--rows: names no row", hint="leave it out for all rows, or --rows switch-kd,sft")
    names = [word for word in words if not _is_change(word)]
    if not names:
        raise UserError("ablate: names no recipe", hint=f"switchkd ablate components {' '.join(words)}")
    changes = [word for word in words if _is_change(word)]
    tables = load_many(names, rows, changes, seeds, seed, world)
    planned = [run for table in tables for run in table.runs]
    if dry_run:
        first = [run for table in tables for run in table.first]
        show_plans(first, root, machine, [table.file for table in tables], world, spread)
        return show_counts(planned, root)
    if spread is not None and (spread.nodes > 1 or spread.hostfile is not None):
        return pool.apart(planned, spread)
    launch.check(planned)
    teachers = [run for table in tables if (run := _taught(table.runs)) is not None]
    failures: list[Failure] = []
    if among_others():  # one run after another; the first failure ends them all
        pool.run_all(planned, root, overwrite=overwrite, resume=resume)
        if not leads():
            return
        for run in teachers:
            launch.teacher_results(run, root)
    else:
        jobs = _jobs(jobs, planned, spread)
        failures = pool.in_workers(
            planned, root, jobs=jobs, overwrite=overwrite, resume=resume, taught=teachers, spread=spread
        )
        show_failures(failures)
    for table in tables:
        try:
            _print_table(table, root)
        except UserError as error:
            failures.append(Failure.of(Entry(f"{table.file}: its table", ()), error))
            show_failures(failures[-1:])
    if failures:
        failed = count(failures)
        what = f"{failed} of {len(planned)} runs failed" if failed else "not everything could be done"
        console.say(f"{what}; the same command tries again")
        raise SystemExit(exit_code(failures))


def _jobs(jobs: int | None, planned: Sequence[Run], spread: Spread | None) -> int:
    """How many runs go at the same time. Raises UserError where several processes are asked for and can't be."""
    if spread is None:
        return jobs or min(2, cores())
    if (jobs or 1) > 1:
        raise UserError(f"--jobs {jobs}: runs in several processes go one after another", hint="leave it out")
    preflight.check_shared(planned, spread.count)
    return 1


def _is_change(word: str) -> bool:
    """Whether a word is `key=value`, or meant to be; a path may hold a `=` as well, behind its first `/`."""
    return "=" in word.partition("/")[0] or ("." in word and find_or_none(word) is None)


def _taught(planned: Sequence[Run]) -> Run | None:
    """A run with the teacher of all rows; None where rows have several, as a table has one line for it."""
    taught = {run.teacher_key: run for run in planned if run.config.teacher is not None}
    return [*taught.values(), *planned][0] if len(taught) < 2 else None


def _print_table(table: RecipeRuns, root: Path) -> None:
    """The table of a recipe's finished runs. Raises UserError where they don't fit into one."""
    from switchkd_cli.report.show import print_ablation

    done = [run_folder.folder(root, run) for run in table.runs if is_finished(root, run)]
    if not done or table.runs[0].config.evaluation is None:
        return console.say(f"{table.file}: no {'scores' if done else 'finished run'}, so no table")
    taught = _taught(table.runs)
    teacher = None if taught is None else launch.known_teacher_results(taught, root)
    controls = [control.row for control in load_with_controls(table.file)[1:]]
    print_ablation(done, teacher, planned=table.runs, controls=controls)
