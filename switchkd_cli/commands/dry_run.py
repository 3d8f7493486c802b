"""What `--dry-run` prints: the plan of each run of a command, what it needs, and what all of them need together."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from switchkd_cli.distributed.launch_config import LaunchConfig
from switchkd_cli.package_data import read_yaml
from switchkd_cli.planning import estimate as plan
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Checkpoint, Fresh, Model, Term
from switchkd_cli.report.formats.markup import environment_of
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import folder_state
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from switchkd_cli.terminal.console import show_table

UNKNOWN = "unknown"
NO_TIME = 0.05 / 3600  # hours that would be printed as 0
PARTS = ("vision", "projector", "language")
TOKENS = ("image", "prompt", "answer")
WORDS = read_yaml(__file__)


def show_plans(
    runs: Sequence[Run], files: Sequence[Path], options: RunOptions, config: LaunchConfig | None = None
) -> None:
    """Print the plan of each different run, then of all. Every problem is reported before the engine is imported."""
    root, gpus = options.out, config.world_size if config else None
    configs = [run.config for run in runs]
    machines = [
        plan.planned_machine(options.machine, c.precision, gpus=gpus, launcher=c.launcher, **c.deepspeed.model_dump())
        for c in configs
    ]
    preflight.check_batches(runs, gpus or 1)
    rows = [run for file in files for run in load_rows(file, world=options.world)]
    planned = {run_folder.folder(root, run).model: run for run in rows}
    preflight.check(runs, planned)
    launch.say_needs([of.evaluation for of in configs])
    estimates: list[plan.RunEstimate] = []
    first: dict[str, Run] = {}
    looked_at: list[object] = []  # the data of runs, most of which share them: a look reads many images
    sampled: dict[str, Any] = {}
    for run, machine in zip(runs, machines, strict=True):
        same = first.setdefault(run.key, run)
        show_plan(run, root, same)
        if same is run:
            stages = [(stage.data_sets, stage.validation) for stage in run.config.stages]
            about = run.config.data, run.config.evaluation, stages
            estimate_run = launch.engine("cost.run_estimate").estimate_run
            try:
                look = about not in looked_at
                estimates.append(estimate_run(run, machine, root, planned, look=look, sampled=sampled))
            except plan.Misfit as misfit:
                show_pair(misfit.facts)
                raise
            if estimates[-1].looks:
                looked_at.append(about)
            _show_run(*estimates[:-3:-1])
    _show_all(estimates)


def show_plan(run: Run, root: Path, same: Run) -> None:
    """Print what the run would do, or of which earlier run (`same`, if not itself) it is the same."""
    folder = run_folder.folder(root, run)
    done = [i for i in range(len(run.config.stages)) if run_folder.stage(root, run.stage_key(i)).done]
    about = {"folder": folder, "state": WORDS["state"][folder_state(folder, run)], "done": max(done, default=-1)}
    print(_rendered("dry_run.txt.jinja", run=run, same=same, config=run.config, **about))


def _rendered(template: str, **values: Any) -> str:
    return environment_of(Path(__file__).parent, _model, _term, _total).get_template(template).render(**values)


def _show_run(estimate: plan.RunEstimate, before: plan.RunEstimate | None = None) -> None:
    """Print one run's models, if they are not those of the run before, and its stages, a column a stage."""
    if before is None or before.models != estimate.models:
        sizes = [(m, [*map(m.parameters.get, PARTS), sum(m.parameters.values()) or None]) for m in estimate.models]
        rows = [(m.who, *(_known(count, _count) for count in counts), _known(m.image_tokens)) for m, counts in sizes]
        show_table(("parameters", *PARTS, "all", "tokens an image"), rows, text=("parameters",))
        for model in estimate.models:
            print(f"{model.who}: {model.source}")
    if before is None or before.pair != estimate.pair:
        show_pair(estimate.pair)
    print(estimate.vocabulary)
    stages = estimate.stages
    columns = [_column(stage, estimate) for stage in stages]
    lines = [(name, *(column[name] for column in columns)) for name in columns[0]]
    show_table(("stage", *(stage.name for stage in stages)), lines, text=("stage",))
    for source in dict.fromkeys(f"{stage.data}: {stage.source}" for stage in stages):
        print(source)
    for name, looked in estimate.looks.items():
        print(f"a look at {name}", *looked, sep="\n  ")
    print()


def _column(stage: plan.StageEstimate, of: plan.RunEstimate) -> dict[str, str]:
    """Return a stage's figures by the heads of their lines, among them what any stage of the run has of memory and time."""
    components = dict.fromkeys(name for each in of.stages for name, size in each.memory.items() if size)
    terms = dict.fromkeys(name for each in of.stages for name, term in each.time.items() if term.takes > NO_TIME)
    lengths, fits_none = stage.lengths, stage.micro_batch is not None and stage.largest_micro_batch is None
    return {
        "rows of data": _known(stage.rows),
        "tokens a row": _known(sum(lengths[part] for part in TOKENS) if lengths else None),
        **{f"  {part}": _known(lengths.get(part)) for part in (*TOKENS, "longest row")},
        "steps": _known(stage.steps),
        "rows a step": _known(stage.batch),
        "  micro x accumulation x GPUs": f"{_known(stage.micro_batch)} x {_known(stage.accumulation)} x {stage.gpus}",
        "  largest micro-batch that fits": "none" if fits_none else _known(stage.largest_micro_batch),
        "  padding, of all tokens": _known(stage.padding, "{:.0%}".format),
        "parameters trained": _known(stage.trained, _count),
        "memory of one GPU": "",
        **{f"  {name}": _known(stage.memory.get(name), _memory) for name in components},
        f"  together, of {of.machine.memory:g} GiB": _known(sum(stage.memory.values()) or None, _memory),
        "TFLOP a step": _known(stage.flops and stage.flops / 1e12),
        **({"sent by one GPU a step": _file_size(stage.sent)} if of.machine.gpus > 1 else {}),
        "time": "reused" if stage.reused else _known(stage.hours, _time),
        **{f"  {name}": _term_of_time(stage.time.get(name)) for name in terms},
        "  bound by": stage.bound or UNKNOWN,
        "saved student": _known(stage.saved_bytes, _file_size),
    }


def show_pair(facts: Sequence[plan.PairFact]) -> None:
    """Print what student and teacher were compared in, a row a property, and what the verdicts mean that aren't yes."""
    columns = ("fact", "student", "teacher", "verdict")
    if facts:
        show_table(columns, [(fact.name, fact.student, fact.teacher, fact.verdict) for fact in facts], text=columns)
    for verdict in dict.fromkeys(fact.verdict for fact in facts if fact.verdict in WORDS["needs"]):
        print(f"{verdict}: {WORDS['needs'][verdict]}")


def _show_all(estimates: Sequence[plan.RunEstimate]) -> None:
    """Print hours and disk of all runs (stages that they share count once), downloads, and what the figures rest on."""
    stages = {stage.key: stage for estimate in estimates for stage in estimate.stages if not stage.reused}.values()
    hours, saved = [stage.hours for stage in stages], [stage.saved_bytes for stage in stages]
    scoring = list({key: each for estimate in estimates for key, each in estimate.scoring.items()}.values())
    costs = {
        machine: [of and of * machine.gpus * machine.price for of in (*hours, *scoring)]
        for machine in dict.fromkeys(estimate.machine for estimate in estimates)
    }
    about: dict[str, Any] = {"hours": hours, "saved": saved, "scoring": scoring, "costs": costs}
    about["downloads"] = {d.name + d.where: d for estimate in estimates for d in estimate.downloads}.values()
    about["notes"] = dict.fromkeys(note for estimate in estimates for note in estimate.notes)
    forms = {"time": _time, "size": _file_size, "dollars": "${:,.2f}".format}
    print(_rendered("dry_run_total.txt.jinja", **about, **forms), end="")


def _term(term: Term) -> str:
    parameters = "".join(f", {key} {value}" for key, value in term.parameters.items())
    on: str = "pictures" if term.signature.of_images else term.on
    on += ", by bytes" * (term.alignment == "bytes")
    on += f", {term.answers} answers" if term.answers else ""
    on += f", focus on {term.focus.by}" if term.focus else ""
    weight = f"{term.weight:g}" if isinstance(term.weight, float) else term.weight
    return f"{weight} x {term.loss}({term.of}, {term.to}{parameters}) on {on}"


def _model(model: Model) -> str:
    if isinstance(model, Checkpoint):
        return f"{model.family}: {model.checkpoint}" if model.family else model.checkpoint
    parts = (model.vision, model.frozen_projector or model.projector, model.language)
    return f"{model.family}: " + " + ".join("fresh" if isinstance(part, Fresh) else part for part in parts)


def _number(value: float) -> str:
    """No decimals from a hundred on; two digits of small numbers."""
    if isinstance(value, int) or value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _known(value: float | None, form: Callable[[float], str] = _number) -> str:
    return UNKNOWN if value is None else form(value)


def _scaled(value: float, units: Sequence[tuple[float, float, str]]) -> str:
    """In the first of these units, each with its size, that is used for such a value: from some least value on."""
    size, unit = next((size, unit) for least, size, unit in units if value >= least)
    return f"{value / size:,.1f} {unit}"


_count = partial(_scaled, units=((1e5, 1e6, "M"), (0, 1e3, "K")))
_memory = partial(_scaled, units=((plan.GIB / 10, plan.GIB, "GiB"), (0, 2**20, "MiB")))
_file_size = partial(_scaled, units=((1e8, 1e9, "GB"), (0, 1e6, "MB")))
_time = partial(_scaled, units=((1, 1, "h"), (1 / 60, 1 / 60, "min"), (0, 1 / 3600, "s")))  # from hours


def _term_of_time(term: plan.TimeTerm | None) -> str:
    """What a term adds, and of how much, where the rest of it passes during other terms."""
    if term is None:
        return ""
    adds, takes = _time(term.adds), _time(term.takes)
    return adds if adds == takes else f"{adds} of {takes}"


def _total(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    known = form(sum(value for value in values if value is not None))
    return f"at least {known}, not all are known" if None in values else known
