"""A stand-in for the engine: writes what a run writes, at once. Also a worker process, when run as a program."""

import sys
import time
import types
from contextlib import nullcontext

from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_json
from switchkd_cli.report import show
from switchkd_cli.runs import run_folder

SCORES = {"mme": {"score": 50.0, "metric": "points", "items": 4, "seconds": 0.1}}
RESULTS = {"world": "playground", "split": "test", "sets_key": "made-up", "scores": SCORES}


def train_stages(run, folder, trackers=None):
    """Ten steps; a row called `long` crashes, a `batch` of 7 is a user's error, a file `hold` makes it wait.

    Each call leaves a line in `trained` beside the runs.
    """
    stage = run.config.stages[-1]
    if stage.batch == 7:
        raise UserError("data.questions: no such folder: pictures", hint="mend it")
    with (folder.root / "trained").open("a") as stream:
        stream.write(f"{run.recipe}/{run.row}/{run.seed}\n")
    while (folder.root / "hold").exists():
        time.sleep(0.02)
    folder.log({"event": "stage", "stage": stage.name, "rows": 8})
    for step in range(1, 11):
        entry = {"stage": stage.name, "step": step, "steps": 10, "seconds": step * 0.5, "loss": 1 / step}
        folder.log({**entry, "loss/ce": 0.5 / step, "lr": 1e-3, "tokens_per_second": 1234.0, "memory_mib": 100.0})
    if run.row == "long":
        raise ZeroDivisionError("the crash of this row")
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    card(run, folder)


def score(run, folder, data=None):
    write_json(folder.results, RESULTS)
    return RESULTS


def evaluate_teacher(run, root):
    """The teacher's scores, kept for the next run; 5 `items` are a user's error."""
    if run.config.evaluation.items == 5:
        raise UserError("no teacher to be had")
    shared = run_folder.evaluation(root, run.teacher_key)
    with shared.build() as partial:
        if partial is not None:
            write_json(partial / "results.json", {"teacher": RESULTS})
            with (root / "scored").open("a") as stream:
                stream.write(f"{run.recipe}\n")
    return run_folder.scores(shared)


def card(run, folder):
    (folder.model / "README.md").unlink(missing_ok=True)
    (folder.model / "README.md").write_text(f"{run.recipe} {run.row}")


class Trackers(nullcontext):
    """None."""

    def __init__(self, run, folder):
        super().__init__(self)

    def scores(self, results):
        """Nobody is given them."""


def install(monkeypatch=None):
    """Put the stand-in where launch looks for the engine and the tables. Returns the record of calls."""
    calls = []

    def note(name, function):
        def noted(*arguments, **more):
            calls.append((name, arguments, more))
            return function(*arguments, **more)

        return noted

    worker = types.ModuleType("worker")
    worker.train_stages = note("train_stages", train_stages)
    worker.evaluate = note("evaluate", score)
    worker.evaluate_teacher = note("evaluate_teacher", evaluate_teacher)
    evaluate = types.ModuleType("evaluate")
    evaluate.evaluate = note("evaluate_model", lambda model, *, folder, **more: {**RESULTS, "model": model})
    cards = types.ModuleType("card")
    cards.write = note("card", card)
    printed = types.ModuleType("printed")
    printed.chosen_format, printed.unwritable = show.chosen_format, show.unwritable
    printed.publish = printed.output = lambda document, *where: None
    tables = types.ModuleType("tables")
    for name in ("distillation", "ablation", "comparison"):
        setattr(tables, name, note(name, lambda *arguments, **more: None))
    trackers = types.ModuleType("trackers")
    trackers.Trackers = Trackers
    modules = {
        "engine.run_stages": worker,
        "engine.training.trackers": trackers,
        "engine.evaluation.score_model": evaluate,
        "engine.export.model_card": cards,
        "report.show": printed,
        "report.tables.comparison": tables,
    }
    for name, module in modules.items():
        if monkeypatch is None:
            sys.modules[f"switchkd_cli.{name}"] = module
        else:
            monkeypatch.setitem(sys.modules, f"switchkd_cli.{name}", module)
    return calls


if __name__ == "__main__":
    install()
    from switchkd_cli import cli

    cli.main()
