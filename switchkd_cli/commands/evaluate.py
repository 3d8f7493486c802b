"""`switchkd eval`: score a model on benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from switchkd_cli import stock_tasks
from switchkd_cli.benchmarks import BENCHMARKS, OWN_ROWS, ROW_METRICS, TEN
from switchkd_cli.commands.options import EvalOptions, comma_separated
from switchkd_cli.errors import MACHINE, UTF8, UserError, did_you_mean
from switchkd_cli.files.atomic import write_json
from switchkd_cli.recipe.fingerprint import Fingerprints
from switchkd_cli.recipe.model_paths import locate
from switchkd_cli.recipe.run import digest
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console

ITEMS = 200  # default number of questions of each benchmark, for a model that is not from a run


def evaluate(options: EvalOptions) -> None:
    model, root = options.model, options.out
    if options.rescore or options.reader:
        return _rescore(options)
    names = comma_separated(options.benchmarks)
    if options.data or options.metric:
        names = [*(names or ()), *_row_metrics(options)]
    own_tasks = str(options.tasks_path.absolute()) if options.tasks_path else None
    if options.tasks_path and not options.tasks_path.is_dir():
        raise UserError(f"--tasks-path: no such folder, got {str(options.tasks_path)!r}")
    known = [*BENCHMARKS, *ROW_METRICS]
    if unknown := [problem for name in names or () if (problem := stock_tasks.unknown(name, known, own_tasks))]:
        raise UserError([f"--benchmarks: {problem}" for problem in unknown])
    folder = run_folder.newest(root) if model is None else finished_run(model)
    # the command line's options, then those of the run's recipe, then the paper's ten benchmarks
    recipe = folder.run().config.evaluation if folder else None
    fields: dict[str, Any] = recipe.model_dump() if recipe else {"benchmarks": TEN}
    if recipe is None and options.world != "hub":
        fields["items"] = ITEMS
    asked: dict[str, Any] = {
        "benchmarks": names,
        "split": options.split,
        "items": options.items,
        "world": options.world,
    }
    asked |= {"tasks_path": own_tasks, "data": _own_rows(options)}
    if options.data and not options.benchmarks:
        asked["world"] = "rows"
        fields["items"] = None
    fields |= {key: value for key, value in asked.items() if value is not None}
    try:
        checked = Evaluation.model_validate(fields)
    except ValidationError as error:
        raise UserError([f"--{e['loc'][0]}: {e['msg']}, got {e['input']!r}" for e in error.errors()]) from None
    question = checked.model_dump(mode="json")
    local = [name for name in question["benchmarks"] if not BENCHMARKS[name].published]
    if question["world"] == "hub" and local:
        raise UserError(f"--benchmarks: only in the playground, not with --world hub: {', '.join(local)}")
    stock = [name for name in question["benchmarks"] if name not in known]
    if question["world"] == "playground" and stock:
        problem = f"--benchmarks: the playground has no questions for it: {', '.join(stock)}"
        raise UserError(problem, hint="add --world hub: lmms-eval's own data, or those that your tasks name")
    for name in stock:
        say_needs(name, question.get("tasks_path"))
    path = locate(str(folder.model) if folder else str(model))
    inputs = Fingerprints()
    key = digest(path, inputs.named(path), question, *inputs.evaluation(checked))
    results, where = launch.evaluate(path, root, key, {**question, "allow_pickle": options.allow_pickle})
    for note in results.get("notes", ()):
        console.say(f"note: {note}")
    from switchkd_cli.report.stats.yes_no import completed
    from switchkd_cli.report.tables.footnotes import faults

    results = completed(results, where / "answers")
    console.show_scores(model or str(folder and folder.path), results)
    for note in faults({"this model": [results]}):
        console.say(note)
    console.say(f"files: {where}")


def _row_metrics(options: EvalOptions) -> list[str]:
    """The benchmarks that --data and --metric name. Raises UserError where one of the two is missing or unknown."""
    metrics = comma_separated(options.metric) or []
    known = [name.partition(".")[2] for name in ROW_METRICS]
    problems = [f"--metric: unknown, got {name!r}{did_you_mean(name, known)}" for name in metrics if name not in known]
    if not options.data:
        problems.append("--metric: says how to score --data, which is missing")
    elif not metrics:
        problems.append(f"--data: add --metric, one or several of {','.join(known)}")
    problems += [
        f"{path}: no such file or folder" for path in (options.data, options.images) if path and not path.exists()
    ]
    if problems:
        raise UserError(problems)
    return [f"{OWN_ROWS}.{name}" for name in metrics]


def _own_rows(options: EvalOptions) -> dict[str, Any] | None:
    """The data set of --data and --images; the form of its rows is read from the first lines of the file."""
    if options.data is None:
        return None
    with options.data.open("rb") as file:
        source = "messages" if b'"messages"' in file.read(1 << 16) else "llava_json"
    paths = {"file": options.data, "images": options.images}
    named = {name: str(path.absolute()) for name, path in paths.items() if path is not None}
    return {"source": source, "parameters": {**named, "turns": "independent"}}


def _rescore(options: EvalOptions) -> None:
    """Score a run's stored answers again, by another reader, and keep the result as an evaluation of its own."""
    from switchkd_cli.report.results.finished_run import read, rescored
    from switchkd_cli.report.stats.readers import READERS

    if options.rescore is None or options.reader not in READERS:
        missing = "--rescore: names the run whose answers are read again, which is missing"
        wrong = f"--reader: unknown, got {options.reader!r}{did_you_mean(options.reader, READERS)}"
        needed = f"--reader: missing, one of {', '.join(READERS)}"
        raise UserError(missing if options.rescore is None else wrong if options.reader else needed)
    run = read(RunFolder(options.rescore.absolute()))
    results, lines, notes = rescored(run, options.reader)
    text = {task: "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in each) for task, each in lines.items()}
    shared = run_folder.evaluation(options.out, digest("rescored", options.reader, results, text))
    with shared.build() as partial:
        if partial is not None:
            (partial / "answers").mkdir(parents=True)
            for task, content in text.items():
                (partial / "answers" / f"{task}.jsonl").write_text(content, **UTF8)
            write_json(partial / "results.json", results)
    console.show_scores(results["model"], results)
    for note in notes:
        console.say(note)
    console.say(f"files: {shared.path}")


def say_needs(name: str, tasks_path: str | None) -> None:
    """Print what each task of a stock benchmark needs. Raises UserError, code MACHINE, for what keeps it from being asked."""
    tasks = stock_tasks.expanded(name, tasks_path)
    if problems := [problem for task in tasks for problem in stock_tasks.obstacles(task, tasks_path)]:
        raise UserError(problems, code=MACHINE)
    needed = dict.fromkeys(need for task in tasks for need in stock_tasks.needs(task, tasks_path))
    for need in needed:
        console.say(f"{name} needs {need}")


def finished_run(name: str) -> RunFolder | None:
    """The finished run in a folder; None when it is not a run's folder. Raises UserError for an unfinished run."""
    folder = RunFolder(Path(name).absolute())
    if not folder.record.exists():
        return None
    if (status := folder.info().get("status", "unknown")) != "finished":
        raise UserError(f"{name}: not finished ({status})", hint="give the same command again to run it")
    return folder
