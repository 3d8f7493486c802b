"""`switchkd eval`: score a model on benchmarks."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from switchkd_cli.benchmarks import BENCHMARKS, OWN_ROWS, ROW_METRICS, TEN, head, refusal, with_accuracies
from switchkd_cli.commands.options import EvalOptions, comma_separated
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.files.atomic import write_json, write_json_lines
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.named_files import locate
from switchkd_cli.recipe.problems import fitted
from switchkd_cli.recipe.run import Fingerprints, digest
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.recipe.validate import check_evaluation
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console

ITEMS = 200  # default number of questions of each benchmark, for a model that is not from a run


def evaluate(options: EvalOptions) -> RunFolder:
    """Score a model, or answers again; print its scores, and return the folder that holds them and the answers."""
    if options.rescore or options.reader:
        return _rescore(options)
    names, metrics = comma_separated(options.benchmarks), comma_separated(options.metric)
    if bool(options.data) != bool(metrics):
        raise UserError("--data and --metric go together: rows, and how answers to them are scored (exact, anls ...)")
    if metrics:
        names = [*(names or ()), *(f"{OWN_ROWS}.{metric}" for metric in metrics)]
    tasks_path = str(options.tasks_path.absolute()) if options.tasks_path else None
    if refused := [problem for name in names or () if (problem := refusal(name, tasks_path))]:
        raise UserError([f"--benchmarks: {problem}" for problem in refused])  # whether there is a run to score or not
    folder = run_folder.newest(options.out) if options.model is None else finished_run(options.model)
    # the command line's options, then those of the run's recipe, then the paper's ten benchmarks
    recipe = folder.run().config.evaluation if folder else None
    fields: dict[str, Any] = recipe.model_dump(mode="json") if recipe else {"benchmarks": [*TEN]}
    if recipe is None and options.world != "hub":
        fields["items"] = ITEMS
    if options.data and not options.benchmarks:
        fields |= {"world": "rows", "items": None}
    asked: dict[str, Any] = {"benchmarks": names, "tasks_path": tasks_path, "data": _own_rows(options)}
    asked |= {"split": options.split, "items": options.items, "world": options.world}
    fields |= {key: value for key, value in asked.items() if value is not None}
    if not ROW_METRICS.keys() & set(fields["benchmarks"]):
        fields["data"] = None  # the recipe's own rows, which --benchmarks leaves out
    checked, wrong = fitted(Evaluation, fields)
    wrong += check_evaluation(Evaluation.as_far_as_it_fits(fields))
    if checked is None or wrong:
        raise UserError([f"--{str(field).replace('_', '-')}: {problem}" for (field, *_), problem in wrong])
    question = checked.model_dump(mode="json")
    preflight.check_metrics(checked)
    preflight.check_answering(options.engine, options.bits)
    launch.say_needs([checked])
    path = locate(str(folder.model if folder else options.model))
    inputs = Fingerprints()
    if inputs.named(path) is None:  # of the hub: fetched here, so that the key has its commit
        launch.engine("hub").fetch(path, "model", allow_pickle=options.allow_pickle)
        inputs.forget()
    how: dict[str, Any] = {"engine": options.engine, "bits": options.bits}
    unusual = [how] * (how != {"engine": EvalOptions.engine, "bits": EvalOptions.bits})
    key = digest(path, inputs.named(path), question, *inputs.evaluation(checked).values(), *unusual)
    shared = run_folder.evaluation(options.out, key)
    with shared.build() as partial:
        if partial is None:
            console.say(f"evaluated before, reused: same model, byte by byte, and questions ({shared.path})")
        else:
            how |= {"sets": run_folder.sets(options.out), "allow_pickle": options.allow_pickle}
            results = launch.engine("evaluation.score_model").evaluate(path, folder=partial, **question, **how)
            write_json(partial / "results.json", results)
    results = run_folder.scores(shared)
    for note in results.get("notes", ()):
        console.say(f"note: {note}")
    from switchkd_cli.report.tables.footnotes import faults

    return show_scores(
        options.model or str(folder and folder.path), results, faults({"this model": [results]}), shared.path
    )


def show_scores(title: str, results: dict[str, Any], notes: Iterable[str], where: Path) -> RunFolder:
    """Print a model's scores, one benchmark per line, and notes on them, and return the folder that holds them."""
    rows, scored = [], results["scores"]
    for name, score in with_accuracies(scored).items():
        digits = BENCHMARKS[name].digits if name in scored else 1
        about = (str(score.get(field, "")) for field in ("metric", "items"))
        rows.append((head(name), f"{score['score']:.{digits}f}", *about))
    console.stdout().print(f"{title} ({results.get('world', '')}, {results.get('split', '')} split)")
    console.show_table(("benchmark", "score", "metric", "items"), rows, text=("benchmark", "metric"))
    for line in (*notes, f"files: {where}"):
        console.say(line)
    return RunFolder(where)


def _own_rows(options: EvalOptions) -> dict[str, Any] | None:
    """The data set of --data and --images."""
    if options.data is None:
        return None
    paths = {"file": options.data, "images": options.images}
    named = {name: str(path.absolute()) for name, path in paths.items() if path is not None}
    return {"source": _form(options.data), "parameters": {**named, "turns": "independent"}}


def _form(file: Path) -> str:
    """The source that reads a file of rows, by the names in it."""
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_schema

        with suppress(ValueError):  # what is wrong with a broken file is said when its rows are read
            return "messages" if "messages" in read_schema(file).names else "llava_json"
    with file.open("rb") as rows:
        return "messages" if b'"messages"' in rows.read(1 << 16) else "llava_json"


def _rescore(options: EvalOptions) -> RunFolder:
    """Score a run's stored answers again, by another reader, and keep the result as an evaluation of its own."""
    from switchkd_cli.report.results.finished_run import read, rescored
    from switchkd_cli.report.stats.stored_answers import READERS

    if options.rescore is None:
        raise UserError("--reader: needs --rescore RUN, the run whose answers are read again")
    if options.reader not in READERS:
        raise UserError(f"--reader: must be a reader, got {options.reader!r}{did_you_mean(options.reader, READERS)}")
    results, answers, notes = rescored(read(RunFolder(options.rescore.absolute())), options.reader)
    shared = run_folder.evaluation(options.out, digest("rescored", options.reader, results, answers))
    with shared.build() as partial:
        if partial is not None:
            (partial / "answers").mkdir(parents=True)
            for task, lines in answers.items():
                write_json_lines(partial / "answers" / f"{task}.jsonl", lines)
            write_json(partial / "results.json", results)
    return show_scores(results["model"], results, notes, shared.path)


def finished_run(name: str) -> RunFolder | None:
    """The finished run in a folder; None when it is not a run's folder. Raises UserError for an unfinished run."""
    folder = RunFolder(Path(name).absolute())
    if not folder.record.exists():
        return None
    if (status := folder.info().get("status", "unknown")) != "finished":
        raise UserError(f"{name}: not finished ({status})", hint="give the same command again to run it")
    return folder
