"""`switchkd compare`: a table, figures or a report of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchkd_cli.commands.evaluate import finished_run
from switchkd_cli.commands.options import CompareOptions
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import read_json
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.named_files import find, find_or_none
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console

if TYPE_CHECKING:
    from switchkd_cli.report.results.finished_run import ScoredRun


def compare(options: CompareOptions) -> None:
    if options.report is not None:
        return _report(options.names or [], options, options.report)
    from switchkd_cli.report.show import chosen_format, output, unwritable
    from switchkd_cli.report.tables.comparison import comparison

    form = chosen_format(options.form, options.out_file)
    if options.demo is not None and (problems := list(unwritable("--demo", options.demo))):
        raise UserError(problems)
    scored, teacher, controls = compared(options)
    document = comparison(scored, teacher, controls=controls, against=options.against)
    output(document, form, options.out_file)
    if options.out_file is not None:
        console.say(f"file: {options.out_file}")
    if options.figures is not None:
        from switchkd_cli.report.figures.draw import draw

        for drawn in draw(scored, teacher, partial(launch.engine, "figure_data"), options.figures):
            console.say(str(drawn))
    if options.demo is not None:
        _demo(scored, teacher, options.demo, options.out, controls=controls, against=options.against)


def compared(options: CompareOptions) -> tuple[list[ScoredRun], dict[str, Any] | None, list[str]]:
    """The named runs with scores (all where nothing is named), their teacher's scores, and a recipe's controls."""
    names, root = options.names or [], options.out
    found = [folder for name in names for folder in _folders(name, options)] if names else run_folder.finished(root)
    scored, teacher = with_scores(found, root)
    is_recipe = len(names) == 1 and _scored_folder(names[0]) is None
    rows = load_rows(find(names[0]), [None], world=options.world, controls=True) if is_recipe else ()
    return scored, teacher, [control.row for control in rows[1:]]


def with_scores(found: Sequence[RunFolder], root: Path) -> tuple[list[ScoredRun], dict[str, Any] | None]:
    """The finished runs that have scores, and the known scores of their teacher and baselines.

    The other runs are named. With several teachers there are no scores of one: a table has one line for it. Raises
    UserError where no run has scores.
    """
    from switchkd_cli.report.results.finished_run import read

    folders = [folder for folder in found if folder.results.exists()]
    for folder in found:
        if folder not in folders:
            console.say(f"{folder.path}: left out, it has no scores")
    if not folders:
        raise UserError(f"{root}: no finished run with scores", hint="switchkd distill recipes/quickstart.yaml")
    trained = [folder.run() for folder in folders if folder.record.exists()]
    return [read(folder) for folder in folders], run_folder.teacher_scores(root, trained)


def _demo(scored: Sequence[ScoredRun], teacher: Any, file: Path, root: Path, **base: Any) -> None:
    from switchkd_cli.report.formats.demo import write_demo

    run = next((RunFolder(run.path).run() for run in scored if run.is_run), None)
    if run is None or run.config.evaluation is None:
        raise UserError("--demo: name a finished run too: its recipe says where the images of the questions are")
    of_teacher = RunFolder(run_folder.evaluation(root, run.teacher_key).path / "teacher")
    evaluation, sets = run.config.evaluation, run_folder.sets(root)

    def images(questions: Any) -> Any:
        return launch.engine("evaluation.score_model").question_images(evaluation, sets, questions)

    write_demo(file, scored, teacher, of_teacher.answers, images, **base)
    console.say(f"demo: {file}")


def _report(names: Sequence[str], options: CompareOptions, folder: Path) -> None:
    others = {"against": "--against", "form": "--format", "out_file": "--out-file"}
    others |= {"figures": "--figures", "demo": "--demo"}
    chosen = [name for field, name in others.items() if getattr(options, field) is not None]
    problems = [f"{name}: can't be combined with --report, which chooses it itself" for name in chosen]
    problems += [] if names else ["--report: no recipe is named"]
    problems += [f"{name}: a run folder; a report is of recipes" for name in names if finished_run(name) is not None]
    problems += [f"--report: {folder} is a file"] if folder.is_file() else []
    if problems:
        raise UserError(problems, hint=f"switchkd compare components loss --world playground --report {folder}")
    from switchkd_cli.report.reproduction.write import write_report

    files = [find(name) for name in names]
    for line in write_report(files, options.world, options.out, folder, partial(launch.engine, "figure_data")):
        console.say(line)


def _folders(name: str, options: CompareOptions) -> list[RunFolder]:
    """The folders with scores of a run, of an evaluation, or of a recipe's runs in the order of its rows."""
    if (folder := _scored_folder(name)) is not None:
        return [folder]
    root, path = options.out, find_or_none(name)
    if path is None or not path.is_file():
        problem = f"{name}: neither a run folder, nor the folder that switchkd eval named, nor a recipe"
        raise UserError(problem, hint=f"ls -d {root}/*/*/seed* {run_folder.evaluation(root, '*').path}")
    rows = load_rows(path, world=options.world)
    order = [run.row for run in rows]
    folders = [f for f in run_folder.finished(root, rows[0].recipe) if f.info().get("row") in order]
    return sorted(folders, key=lambda f: (order.index(f.info()["row"]), f.info().get("seed", 0)))


def _scored_folder(name: str) -> RunFolder | None:
    """The folder of a finished run, or of a model that `switchkd eval` scored; None when it is neither."""
    if (run := finished_run(name)) is not None:
        return run
    folder = RunFolder(Path(name).absolute())
    results = read_json(folder.results)
    return folder if isinstance(results, dict) and {"model", "scores"} <= results.keys() else None
