"""What each command but `ablate` does, from its arguments to its last line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.commands.dry_run import show_plans
from switchkd_cli.distributed.launch_config import Spread, leads
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.find import find, find_or_none
from switchkd_cli.recipe.fingerprint import Fingerprints
from switchkd_cli.recipe.load import load, load_rows, load_with_controls
from switchkd_cli.recipe.model_paths import locate
from switchkd_cli.recipe.run import digest
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.runs import run_folder
from switchkd_cli.scheduler import launch, pool
from switchkd_cli.terminal import console

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
        return show_plans([run], root, machine, [path], world, spread)
    if spread is not None:
        return pool.apart([run], spread)
    launch.check([run])
    if overwrite and leads():
        run_folder.set_stages_aside(root, [run])
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
        return show_plans(planned, root, machine, [path], world, spread)
    if spread is not None:
        return pool.apart(planned, spread)
    folders = pool.run_all(planned, root, jobs=jobs, overwrite=overwrite, resume=resume)
    if not leads():
        return
    if planned[0].config.evaluation is None:
        return console.say("\n".join(f"model: {folder.model}" for folder in folders))
    from switchkd_cli.report.show import print_distillation

    print_distillation(folders, launch.teacher_results(planned[0], root))


def evaluate(model: str | None, asked: Mapping[str, Any], root: Path, *, allow_pickle: bool = False) -> None:
    problems = [
        f"--benchmarks: unknown benchmark, got {name!r}{did_you_mean(name, BENCHMARKS)}"
        for name in asked["benchmarks"] or ()
        if name not in BENCHMARKS
    ]
    if problems:
        raise UserError(problems)
    folder = run_folder.newest_finished(root) if model is None else _run(model)
    question = _question(folder.run().config.evaluation if folder else None, asked)
    name = locate(str(folder.model) if folder else str(model))
    key = digest(name, Fingerprints().model(name), question)
    results, where = launch.evaluate(name, root, key, {**question, "allow_pickle": allow_pickle})
    for note in results.get("notes", ()):
        console.say(f"note: {note}")
    console.show_scores(model or str(folder.path), results)
    from switchkd_cli.report.tables.footnotes import faults

    for note in faults({"this model": [results]}):
        console.say(note)
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
    from switchkd_cli.report.formats import choose

    form = choose.chosen(form, file)
    folders = (
        [folder for name in names for folder in _named(name, world, root)]
        if names
        else run_folder.finished(root)
    )
    unscored = [folder for folder in folders if not folder.results.exists()]
    for folder in unscored:
        console.say(f"{folder.path}: left out, it has no scores")
    folders = [folder for folder in folders if folder not in unscored]
    if not folders:
        raise UserError(
            f"{root}: no finished run with scores", hint="switchkd distill recipes/quickstart.yaml"
        )
    trained = [folder.run() for folder in folders if folder.record.exists()]
    teachers = {run.teacher_key: run for run in trained}
    # one column can only be one teacher's: with several, none is shown
    teacher = (
        launch.known_teacher_results(next(iter(teachers.values())), root) if len(teachers) == 1 else None
    )
    from switchkd_cli.report.results.finished_run import read
    from switchkd_cli.report.show import print_comparison

    scored = [read(folder) for folder in folders]
    print_comparison(scored, teacher, controls=_controls(names, world), against=against, form=form, file=file)
    if file is not None:
        console.say(f"file: {file}")
    if pictures is not None:
        from switchkd_cli.report.figures.draw import draw

        for drawn in draw(scored, teacher, launch.models(), pictures):
            console.say(str(drawn))


def report(
    names: Sequence[str], world: str | None, root: Path, folder: Path, asked: Mapping[str, Any]
) -> None:
    problems = [
        f"{name}: not with --report, which has its own" for name, value in asked.items() if value is not None
    ]
    problems += [] if names else ["--report: no recipe is named"]
    problems += [f"{name}: a run folder; a report is of recipes" for name in names if _run(name) is not None]
    problems += [f"--report: {folder} is a file"] if folder.is_file() else []
    if problems:
        raise UserError(
            problems, hint=f"switchkd compare components loss --world playground --report {folder}"
        )
    from switchkd_cli.report.reproduction import write_report

    for line in write_report([find(name) for name in names], world, root, folder, launch.models()):
        console.say(line)


def _controls(names: Sequence[str], world: str | None) -> list[str]:
    """The control rows of the recipe that was named, if one was alone."""
    if len(names) != 1 or _run(names[0]) or _evaluation(names[0]):
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


def _named(name: str, world: str | None, root: Path) -> list[run_folder.RunFolder]:
    """The scores behind one word of `compare`: a run's, an evaluation's, or a recipe's runs in its rows' order."""
    if (folder := _run(name) or _evaluation(name)) is not None:
        return [folder]
    path = find_or_none(name)
    if path is None or not path.is_file():
        raise UserError(
            f"{name}: neither a run folder, nor the folder that switchkd eval named, nor a recipe",
            hint=f"ls -d {root}/*/*/seed* {run_folder.evaluation(root, '*').path}",
        )
    rows = load_rows(path, world=world)
    order = [run.row for run in rows]
    found = [f for f in run_folder.finished(root, rows[0].recipe) if f.info().get("row") in order]
    return sorted(found, key=lambda f: (order.index(f.info()["row"]), f.info().get("seed", 0)))


def _given(recipe: str | None) -> str:
    if recipe is None:
        raise UserError("which recipe?", hint="switchkd distill recipes/quickstart.yaml")
    return recipe


def _left(name: str | None, overrides: Sequence[str], root: Path) -> run_folder.RunFolder | None:
    """The folder of an unfinished run, or of the newest one where none is named.

    None for a recipe's name. Raises UserError when there is no such run.
    """
    if name is None:
        folder = run_folder.newest_unfinished(root)
    elif not (folder := run_folder.RunFolder(Path(name).absolute())).record.exists():
        return None
    if overrides:
        raise UserError(
            f"{overrides[0]}: a run that is gone on with keeps its own recipe",
            hint="leave KEY=VALUE out, or name the recipe instead of the run",
        )
    return folder


def _run(name: str) -> run_folder.RunFolder | None:
    """The finished run in a folder; None when it is not a run's. Raises UserError for a run that did not finish."""
    folder = run_folder.RunFolder(Path(name).absolute())
    if not folder.record.exists():
        return None
    if (status := folder.info().get("status", "unknown")) != "finished":
        raise UserError(f"{name}: not finished ({status})", hint="give the same command again to run it")
    return folder


def _evaluation(name: str) -> run_folder.RunFolder | None:
    """The folder in which `switchkd eval` left a model's scores; None when it is not one."""
    folder = run_folder.RunFolder(Path(name).absolute())
    found = run_folder.read_json(folder.results)
    return folder if isinstance(found, dict) and {"model", "scores"} <= found.keys() else None
