"""`switchkd compare`: a table, figures or a report of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from switchkd_cli.commands.evaluate import finished_run
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import read_json
from switchkd_cli.recipe.find import find, find_or_none
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console


def compare(
    names: Sequence[str],
    world: str | None,
    root: Path,
    against: str | None = None,
    form: str | None = None,
    out_file: Path | None = None,
    figures: Path | None = None,
    report: Path | None = None,
) -> None:
    if report is not None:
        options = {"--against": against, "--format": form, "--out-file": out_file, "--figures": figures}
        return _report(names, world, root, report, [name for name, value in options.items() if value is not None])
    from switchkd_cli.report.formats.export import chosen_format

    form = chosen_format(form, out_file)
    if names:
        folders = [folder for name in names for folder in _folders(name, world, root)]
    else:
        folders = run_folder.finished(root)
    for folder in folders:
        if not folder.results.exists():
            console.say(f"{folder.path}: left out, it has no scores")
    folders = [folder for folder in folders if folder.results.exists()]
    if not folders:
        raise UserError(f"{root}: no finished run with scores", hint="switchkd distill recipes/quickstart.yaml")
    trained = [folder.run() for folder in folders if folder.record.exists()]
    # a table has one line for the teacher: with several teachers, none is shown
    same_teacher = len({run.teacher_key for run in trained}) == 1
    teacher = launch.known_teacher_results(trained[0], root) if same_teacher else None
    from switchkd_cli.report.results.finished_run import read
    from switchkd_cli.report.show import print_comparison

    scored = [read(folder) for folder in folders]
    controls = _controls(names, world)
    print_comparison(scored, teacher, controls=controls, against=against, form=form, file=out_file)
    if out_file is not None:
        console.say(f"file: {out_file}")
    if figures is not None:
        from switchkd_cli.report.figures.draw import draw

        for drawn in draw(scored, teacher, launch.FigureData(), figures):
            console.say(str(drawn))


def _report(names: Sequence[str], world: str | None, root: Path, folder: Path, other_options: Sequence[str]) -> None:
    problems = [f"{name}: can't be combined with --report, which chooses it itself" for name in other_options]
    problems += [] if names else ["--report: no recipe is named"]
    problems += [f"{name}: a run folder; a report is of recipes" for name in names if finished_run(name) is not None]
    problems += [f"--report: {folder} is a file"] if folder.is_file() else []
    if problems:
        raise UserError(problems, hint=f"switchkd compare components loss --world playground --report {folder}")
    from switchkd_cli.report.reproduction.write import write_report

    files = [find(name) for name in names]
    for line in write_report(files, world, root, folder, launch.FigureData()):
        console.say(line)


def _controls(names: Sequence[str], world: str | None) -> list[str]:
    """The control rows of the recipe, when exactly one recipe was named."""
    if len(names) != 1 or finished_run(names[0]) or _evaluation(names[0]):
        return []
    return [control.row for control in load_rows(find(names[0]), [None], world=world, controls=True)[1:]]


def _folders(name: str, world: str | None, root: Path) -> list[RunFolder]:
    """The folders with scores of a run, of an evaluation, or of a recipe's runs in the order of its rows."""
    if (folder := finished_run(name) or _evaluation(name)) is not None:
        return [folder]
    path = find_or_none(name)
    if path is None or not path.is_file():
        raise UserError(
            f"{name}: neither a run folder, nor the folder that switchkd eval named, nor a recipe",
            hint=f"ls -d {root}/*/*/seed* {run_folder.evaluation(root, '*').path}",
        )
    rows = load_rows(path, world=world)
    order = [run.row for run in rows]
    folders = [f for f in run_folder.finished(root, rows[0].recipe) if f.info().get("row") in order]
    return sorted(folders, key=lambda f: (order.index(f.info()["row"]), f.info().get("seed", 0)))


def _evaluation(name: str) -> RunFolder | None:
    """The folder in which `switchkd eval` wrote a model's scores; None when it is not one."""
    folder = RunFolder(Path(name).absolute())
    results = read_json(folder.results)
    return folder if isinstance(results, dict) and {"model", "scores"} <= results.keys() else None
