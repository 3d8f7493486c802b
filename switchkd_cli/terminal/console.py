"""Messages, errors, plans and scores on the screen. Live progress is in progress.py.

Messages go to stderr and tables to stdout. Nothing is read as markup: `[student]` in a message is text.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from switchkd_cli import registry
from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError, discard_output, printable
from switchkd_cli.planning.preflight import Plan, StagePlan
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Checkpoint, Fresh, Model, Term

if TYPE_CHECKING:
    from rich.console import Console


def stdout() -> Console:
    """A rich console that prints text unchanged."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """Print lines of text to stderr, made safe: they may quote text that a terminal would obey as a command."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr)


def error(problem: UserError) -> None:
    """Print every problem on its line, then the hint and the notes."""
    for line in problem.problems:
        say(line)
    if problem.hint:
        say(f"hint: {problem.hint}")
    for note in getattr(problem, "__notes__", ()):
        say(note)


def show_plan(plan: Plan) -> None:
    """Print the plan of one run, for `--dry-run`."""
    run, config = plan.run, plan.run.config
    lines = {
        "run": f"{run.recipe}, row {run.row}: {run.title}",
        "folder": f"{plan.folder.path} ({_STATES[plan.state]})",
        "seed": f"{run.seed}, {config.precision}",
        "student": _model(config.student),
        "teacher": _model(config.teacher) if config.teacher else "none",
    }
    for name, text in lines.items():
        print(f"{name:<9}{text}")
    for planned in plan.stages:
        print("stage".ljust(9) + "\n         ".join(_stage(planned)))
    if config.evaluation is not None:
        e = config.evaluation
        items = f"{e.items} items each" if e.items else "all items"
        print(f"{'scores':<9}{e.world}, {e.split} split, {items}: {', '.join(e.benchmarks)}")
    print()


def show_same(run: Run, same: Run) -> None:
    """Print a run that is the same as an earlier one under another name, for `--dry-run`."""
    print(f"{'run':<9}{run.recipe}, row {run.row}: {run.title}")
    print(f"{'':<9}the same run as {same.recipe}, row {same.row}\n")


def show_scores(title: str, results: Mapping[str, Any]) -> None:
    """Print one model's scores, one benchmark per line."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("benchmark", "score", "metric", "items"):
        table.add_column(column, justify="right" if column in ("score", "items") else "left", overflow="fold")
    for task, score in results["scores"].items():
        name = BENCHMARKS[task].column if task in BENCHMARKS else task
        table.add_row(name, f"{score['score']:.1f}", str(score.get("metric", "")), str(score.get("items", "")))
    console = stdout()
    console.print(f"{title} ({results.get('world', '')}, {results.get('split', '')} split)")
    console.print(table)


_STATES = {
    "new": "new",
    "finished": "finished: would be reused",
    "interrupted": "interrupted: would be resumed",
    "unfinished": "unfinished: would be moved aside",
    "other": "holds another run: needs --overwrite or --out",
}


def _stage(planned: StagePlan) -> list[str]:
    s = planned.stage
    length = f"{s.steps} steps" if s.steps else f"{s.epochs:g} epochs"
    parts = [part + (f" x{s.lr_scale[part]:g}" if part in s.lr_scale else "") for part in s.train]
    micro = "" if s.micro_batch in (None, s.batch) else f" (by {s.micro_batch})"
    return [
        f"{s.name}, {length} of {s.batch} rows{micro} from {s.data}" + (", reused" if planned.reused else ""),
        f"  trains   {', '.join(parts)}, lr {s.lr:g}, {s.schedule}",
        f"  computes {', '.join(sorted(s.paths))}",
        *(f"  {_term(term)}" for term in s.objective),
    ]


def _term(term: Term) -> str:
    parameters = "".join(f", {key} {value}" for key, value in term.parameters.items())
    on = "pictures" if registry.signature("loss", term.loss).of_images else term.on
    return f"{term.weight:g} x {term.loss}({term.of}, {term.to}{parameters}) on {on}"


def _model(model: Model) -> str:
    if isinstance(model, Checkpoint):
        return f"{model.family}: {model.checkpoint}"
    parts = (model.vision, model.projector, model.language)
    return f"{model.family}: " + " + ".join("fresh" if isinstance(part, Fresh) else part for part in parts)
