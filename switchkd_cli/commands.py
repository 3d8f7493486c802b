"""What each command does, from its arguments to its last line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switchkd_cli import console, forecast, launch, plan, runs, sheet, workers
from switchkd_cli.cores import cores
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.locate import locate
from switchkd_cli.occupy import content
from switchkd_cli.protocol import BENCHMARKS
from switchkd_cli.recipe.find import find, named
from switchkd_cli.recipe.fingerprint import fingerprint
from switchkd_cli.recipe.load import load, load_rows, load_with_controls
from switchkd_cli.recipe.run import Run, digest
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.spread import Spread, among_others, leads

ITEMS = 200  # questions of each benchmark that a model is asked when nobody says


def pretrain(
    recipe: str | None,
    overrides: Sequence[str],
    row: str | None,
    seed: int | None,
    world: str | None,
    root: Path,
    *,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    machine: str | None,
    spread: Spread | None = None,
) -> None:
    if resume and (left := _left(recipe, overrides, root)) is not None:
        root, run, path = left.root, left.run(), left.recipe
    else:
        path = find(_given(recipe))
        run = load(path, row, overrides, seed, world).leading()
    if dry_run:
        return _show([run], root, machine, path, world, spread)
    if spread is not None:
        return _apart([run], spread)
    plan.check([run])
    folder = launch.run_one(run, root, overwrite=overwrite, resume=resume)
    if leads():
        console.say(f"model: {folder.model}")


def distill(
    recipe: str | None,
    overrides: Sequence[str],
    row: str | None,
    seed: int | None,
    world: str | None,
    root: Path,
    *,
    jobs: int,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    machine: str | None,
    spread: Spread | None = None,
) -> None:
    if resume and (left := _left(recipe, overrides, root)) is not None:
        root, planned, path = left.root, [left.run()], left.recipe
    else:
        path = find(_given(recipe))
        planned = load_with_controls(path, row, overrides, seed, world)
    if dry_run:
        return _show(planned, root, machine, path, world, spread)
    if spread is not None:
        return _apart(planned, spread)
    folders = workers.run_all(planned, root, jobs=jobs, overwrite=overwrite, resume=resume)
    if not leads():
        return
    if planned[0].config.evaluation is None:
        return console.say("\n".join(f"model: {folder.model}" for folder in folders))
    from switchkd_cli.report.table import print_distillation

    print_distillation(folders, launch.teacher_results(planned[0], root))


def ablate(
    recipe: str,
    overrides: Sequence[str],
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
    if rows is not None and not rows:
        raise UserError("--rows: names no row", hint="leave it out for all rows, or --rows switch-kd,sft")
    path = find(recipe)
    first = load_rows(path, rows, overrides, seed, world)
    more = [load_rows(path, rows, overrides, first[0].seed + i, world) for i in range(1, seeds)]
    planned = [run for same_row in zip(first, *more, strict=True) for run in same_row]
    if dry_run:
        _show(first, root, machine, path, world, spread)
        return console.say(f"seeds: {', '.join(str(first[0].seed + i) for i in range(seeds))}")
    if spread is not None and (spread.nodes > 1 or spread.hostfile is not None):
        return _apart(planned, spread)
    plan.check(planned)
    if among_others():  # one run after another; the first failure ends them all
        workers.run_all(planned, root, overwrite=overwrite, resume=resume)
        failures = []
    else:
        failures = _each(planned, root, jobs=jobs, overwrite=overwrite, resume=resume, spread=spread)
    if not leads():
        return
    done = [runs.folder(root, run) for run in planned if _is_finished(run, root)]
    if done and planned[0].config.evaluation is not None:
        from switchkd_cli.report.table import print_ablation

        controls = [control.row for control in load_with_controls(path)[1:]]
        print_ablation(done, _one_teacher(planned, root), planned=planned, controls=controls)
    if failures:
        console.say(f"{len(failures)} of {len(planned)} runs failed; the same command runs them again")
        raise SystemExit(workers.exit_code(failures))


def _each(
    planned: Sequence[Run],
    root: Path,
    *,
    jobs: int | None,
    overwrite: bool,
    resume: bool,
    spread: Spread | None,
) -> list[workers.Failure]:
    """Runs what is not finished, and says what failed."""
    if spread is not None:
        if (jobs or 1) > 1:
            raise UserError(
                f"--jobs {jobs}: runs in several processes go one after another", hint="leave it out"
            )
        plan.check_shared(planned, spread.count)
    before = [run for run in planned if not overwrite and _is_finished(run, root)]
    waiting = [run for run in planned if run not in before]
    if before:
        console.say(f"{len(before)} of {len(planned)} runs finished before, reused")
    jobs = 1 if spread else jobs or min(2, cores())
    failures = workers.in_workers(
        waiting, root, jobs=jobs, overwrite=overwrite, resume=resume, finished=before, spread=spread
    )
    workers.show_failures(failures)
    return failures


def _apart(planned: Sequence[Run], spread: Spread) -> None:
    """The same command in every process of the spread, once it is known to make sense."""
    plan.check(planned)
    plan.check_shared(planned, spread.count)
    launch.apart(["-m", "switchkd_cli.cli", *sys.argv[1:]], spread)


def evaluate(model: str | None, asked: Mapping[str, Any], root: Path, *, allow_pickle: bool = False) -> None:
    problems = [
        f"--benchmarks: unknown benchmark, got {name!r}{did_you_mean(name, BENCHMARKS)}"
        for name in asked["benchmarks"] or ()
        if name not in BENCHMARKS
    ]
    if problems:
        raise UserError(problems)
    folder = runs.newest_finished(root) if model is None else _run(model)
    question = _question(folder.run().config.evaluation if folder else None, asked)
    name = locate(str(folder.model) if folder else str(model))
    key = digest(name, fingerprint(name), question)
    results, where = launch.evaluate(name, root, key, {**question, "allow_pickle": allow_pickle})
    console.show_scores(model or str(folder.path), results)
    console.say(f"files: {where}")


def compare(
    names: Sequence[str],
    world: str | None,
    root: Path,
    *,
    against: str | None = None,
    form: str | None = None,
    file: Path | None = None,
    pictures: Path | None = None,
) -> None:
    from switchkd_cli.report import formats

    form = formats.chosen(form, file)
    folders = (
        [folder for name in names for folder in _named(name, world, root)] if names else runs.finished(root)
    )
    unscored = [folder for folder in folders if not folder.results.exists()]
    for folder in unscored:
        console.say(f"{folder.path}: left out, it has no scores")
    folders = [folder for folder in folders if folder not in unscored]
    if not folders:
        raise UserError(
            f"{root}: no finished run with scores", hint="switchkd distill recipes/quickstart.yaml"
        )
    teachers = {run.teacher_key: run for run in (folder.run() for folder in folders)}
    # one column can only be one teacher's: with several, none is shown
    teacher = (
        launch.known_teacher_results(next(iter(teachers.values())), root) if len(teachers) == 1 else None
    )
    from switchkd_cli.report.table import print_comparison

    print_comparison(
        folders, teacher, controls=_controls(names, world), against=against, form=form, file=file
    )
    if file is not None:
        console.say(f"file: {file}")
    if pictures is not None:
        from switchkd_cli.report.pictures.draw import draw
        from switchkd_cli.report.scored import read

        for line in draw([read(folder) for folder in folders], teacher, launch.models(), pictures):
            console.say(line)


def _controls(names: Sequence[str], world: str | None) -> list[str]:
    """The control rows of the recipe that was named, if one was alone."""
    if len(names) != 1 or _run(names[0]) is not None:
        return []
    return [control.row for control in load_with_controls(find(names[0]), world=world)[1:]]


def words(text: str | None) -> list[str] | None:
    """The comma-separated words of an option."""
    return [word.strip() for word in text.split(",") if word.strip()] if text is not None else None


def _question(default: Evaluation | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What to ask a model: the command line's wishes, then its own recipe's, then all ten benchmarks."""
    from pydantic import ValidationError

    base = default.model_dump() if default else {"benchmarks": tuple(BENCHMARKS)}
    if default is None and asked["world"] != "hub":
        base["items"] = ITEMS
    base |= {key: value for key, value in asked.items() if value is not None}
    try:
        wanted = Evaluation.model_validate(base)
    except ValidationError as error:
        raise UserError(
            [f"--{e['loc'][0]}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        ) from None
    return wanted.model_dump(mode="json")


def _one_teacher(planned: Sequence[Run], root: Path) -> dict[str, Any] | None:
    """The scores of the rows' teacher and the baselines; None where rows have several, as a table has one line."""
    taught = {run.teacher_key: run for run in planned if run.config.teacher is not None}
    return launch.teacher_results([*taught.values(), *planned][0], root) if len(taught) < 2 else None


def _named(name: str, world: str | None, root: Path) -> list[runs.RunFolder]:
    """The finished runs behind one word of `compare`: a run folder, or a recipe's runs in its rows' order."""
    if (folder := _run(name)) is not None:
        return [folder]
    path = named(name)
    if path is None or not path.is_file():
        raise UserError(f"{name}: neither a run folder nor a recipe", hint=f"ls -d {root}/*/*/seed*")
    rows = load_rows(path, world=world)
    order = [run.row for run in rows]
    found = [f for f in runs.finished(root, rows[0].recipe) if f.info()["row"] in order]
    return sorted(found, key=lambda f: (order.index(f.info()["row"]), f.info()["seed"]))


def _given(recipe: str | None) -> str:
    if recipe is None:
        raise UserError("which recipe?", hint="switchkd distill recipes/quickstart.yaml")
    return recipe


def _left(name: str | None, overrides: Sequence[str], root: Path) -> runs.RunFolder | None:
    """The folder of an unfinished run, or of the newest one where none is named.

    None for a recipe's name. Raises UserError when there is no such run.
    """
    if name is None:
        folder = runs.newest_unfinished(root)
    elif not (folder := runs.RunFolder(Path(name).absolute())).record.exists():
        return None
    if overrides:
        raise UserError(
            f"{overrides[0]}: a run that is gone on with keeps its own recipe",
            hint="leave KEY=VALUE out, or name the recipe instead of the run",
        )
    return folder


def _run(name: str) -> runs.RunFolder | None:
    """The finished run in a folder; None when it is not a run's. Raises UserError for a run that did not finish."""
    folder = runs.RunFolder(Path(name).absolute())
    if not folder.record.exists():
        return None
    if (status := folder.info().get("status", "unknown")) != "finished":
        raise UserError(f"{name}: not finished ({status})", hint="give the same command again to run it")
    return folder


def _is_finished(run: Run, root: Path) -> bool:
    return content(runs.folder(root, run), run) == "finished"


def _show(
    planned: Sequence[Run],
    root: Path,
    machine: str | None,
    recipe: str | Path,
    world: str | None,
    spread: Spread | None,
) -> None:
    """The plan of each run, then of all; each wrong thing is told before the engine is imported."""
    gpus = spread.count if spread else None
    machines = [
        forecast.machine(machine, run.config.precision, **run.config.deepspeed.model_dump(), gpus=gpus)
        for run in planned
    ]
    if gpus is not None:
        plan.check_shared(planned, gpus)
    made = {runs.folder(root, run).model: run for run in load_rows(recipe, world=world)}
    plan.check(planned, made)
    shown = []
    for run, on in zip(planned, machines, strict=True):
        console.show_plan(plan.plan(run, root))
        shown.append(launch.forecast(run, on, root, made))
        sheet.show_run(*shown[:-3:-1])
    sheet.show_all(shown)
