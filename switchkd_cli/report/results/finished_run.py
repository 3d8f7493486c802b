"""Read a finished run, or an evaluated model, from its folder."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from switchkd_cli.benchmarks import BENCHMARKS, with_accuracies
from switchkd_cli.errors import UserError, printable, shown
from switchkd_cli.files.atomic import json_lines, read_json
from switchkd_cli.recipe import patches
from switchkd_cli.recipe.named_files import ASSETS, SHIPPED
from switchkd_cli.recipe.run import NOT_IN_KEYS, NOT_IN_KEYS_OF_STAGES, NOT_IN_KEYS_OF_TEACHER
from switchkd_cli.recipe.yaml_positions import fields_of
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.stats.baselines import BASELINES, yes_no
from switchkd_cli.report.stats.stored_answers import AnswerLine, Reader, read_answers, readable, reread, units
from switchkd_cli.runs.file_schemas import Resolved, Results, check
from switchkd_cli.runs.run_folder import RunFolder

USUAL_ENGINE = "transformers"  # see registry.ENGINES
EARLY_END = "early end"  # what the engine's event is about
UNKNOWN = "–"  # the recipe of a model that was only scored
HINT = "train and score the runs with one installation, on one world: switchkd distill RECIPE --overwrite"
NAMES = ("recipe", "row", "title", "seed")  # of a run, in its run.json

TeacherScores = Mapping[str, Any] | None
"""Results of "teacher", "majority" and "blind", and "not_beaten": see `stats.baselines.with_verdict`. None: not scored."""


@dataclass(frozen=True)
class ScoredRun:
    """One run, or one model that `switchkd eval` scored: its name, its questions, its scores, its training."""

    path: Path
    recipe: str
    row: str
    title: str
    seed: int | None
    """None for a model of which only the scores are known: no seed, no training, no recipe."""
    results: Mapping[str, Any]
    """results.json, written by engine/evaluation/score_model.py; `fidelity` and `eyes_or_reader` in it are those of
    `engine.evaluation.against_teacher`, with `data` and whether these were `held_out`."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """run.json: key, command, commit, machine, versions, times."""
    stages: Sequence[Mapping[str, Any]] = ()
    """The stages of the resolved recipe."""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """Name in the recipe -> its stand-in, where the run used another world than its recipe's."""
    clocks: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage that this run trained itself, in their order; not of those that it reused."""
    early: Mapping[str, int] = field(default_factory=dict)
    """The last step of each stage that its validation ended early."""
    gib: float | None = None
    """The highest logged peak of its last stage: the accelerator's memory, or the process's where there is none."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Training warnings: subject -> text."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's printed numbers, by benchmark."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library versions of the training; those of the scoring are in `results`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that its results depend on apart from the seed, by dotted name: the resolved recipe, and digests of its inputs."""

    @property
    def seconds(self) -> float | None:
        """Training time of the last stage; earlier stages may be shared between runs."""
        return self.clocks.get(self.stages[-1]["name"]) if self.stages else None

    @property
    def measured(self) -> dict[str, Any]:
        """What its last stage took, and how it compares with the teacher, by the names of texts.yaml."""
        fidelity, eyes = (self.results.get(about) or {} for about in ("fidelity", "eyes_or_reader"))
        parts = {**eyes.get("accuracy", {}), **eyes.get("grounding", {})}
        return {"seconds": self.seconds, "gib": self.gib, **fidelity, **eyes, **parts}

    @property
    def is_run(self) -> bool:
        """Whether it was trained here; otherwise only its scores are known."""
        return self.seed is not None

    @property
    def name(self) -> str:
        return f"{self.title} (seed {self.seed})" if self.is_run else self.title

    @cached_property
    def scores(self) -> dict[str, float]:
        """0..100, see `scores`."""
        return scores(self.results)

    @property
    def length(self) -> str:
        """Training length, such as `pretrain 60 steps of 32, distill 300 steps of 32`."""
        lengths = []
        for stage in self.stages:
            planned = f"{stage['steps']} steps" if stage.get("steps") else f"{stage['epochs']:g} epochs in steps"
            end = f"{self.early[stage['name']]} of " if stage["name"] in self.early else ""
            lengths.append(f"{stage['name']} {end}{planned} of {stage['batch']}")
        return ", ".join(lengths)


def read(folder: RunFolder) -> ScoredRun:
    """The run, or the evaluated model, in a folder. Raises UserError when it has no scores."""
    if not (results := read_json(folder.results)):
        raise UserError(f"{folder.path}: no scores: {folder.results.name} is missing or unreadable")
    check(Results, results, folder.results)
    if not folder.record.exists():
        name = _model_name(results)
        return ScoredRun(folder.path, UNKNOWN, name, name, None, results)
    info = folder.info(*NAMES)
    resolved = check(Resolved, patches.read(folder.recipe)[0], folder.recipe)
    lines = folder.entries()
    steps = [line for line in lines if "step" in line and type(line.get("seconds")) in (int, float)]
    last = [line for line in lines if line.get("stage") == resolved["stages"][-1]["name"]]
    peaks = [line["memory_mib"] for line in last if type(line.get("memory_mib")) in (int, float)]
    warned = [(line.get("about"), line.get("text")) for line in lines if line.get("event") == "warning"]
    if changed := info.get("changed"):
        warned.append(("inputs", f"changed while it ran, so it is never reused: {', '.join(changed)}"))
    if unreadable := len(json_lines(folder.metrics, missing_ok=True, broken_ok=True)) - len(lines):
        warned.append((folder.metrics.name, f"{unreadable} lines of {folder.metrics.name} can't be read"))
    return ScoredRun(
        folder.path,
        **{name: info[name] for name in NAMES},
        results=results,
        info=info,
        paper=info.get("paper") or {},
        versions=info.get("versions") or {},
        settings=dict(fields_of(_settings(resolved) | {"inputs": info.get("inputs") or {}})),
        stages=resolved["stages"],
        stand_ins=resolved.get("stand_ins") or {},
        clocks={line["stage"]: line["seconds"] for line in steps},  # at its last step
        early={line["stage"]: line["step"] for line in lines if line.get("about") == EARLY_END},
        gib=max(peaks) / 1024 if peaks else None,
        warnings={printable(str(about)): printable(str(text)) for about, text in warned},
    )


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's key counts of its resolved recipe, without the seed."""
    stages = [_without(NOT_IN_KEYS_OF_STAGES, stage) for stage in recipe["stages"]]
    teacher = _without(NOT_IN_KEYS_OF_TEACHER, recipe.get("teacher") or {})
    return _without({"seed", *NOT_IN_KEYS}, {**recipe, "stages": stages, "teacher": teacher})


def _without(names: Container[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _model_name(results: Mapping[str, Any]) -> str:
    """The name of a model that was only scored: a hub id, a shipped model, or the path of its folder.

    Of a run's model with few bits or in another engine: the run's name, and that.
    """
    path = Path(printable(str(results["model"])))
    name = SHIPPED + str(path.relative_to(ASSETS)) if path.is_relative_to(ASSETS) else shown(path)
    if results.get("reader"):
        return name  # it says who read it
    bits, engine = results.get("bits"), results.get("engine", USUAL_ENGINE)
    how = [f"{bits} bits"] * bool(bits) + [engine] * (engine != USUAL_ENGINE)
    if how and (info := RunFolder(path.parent).info()):
        name = f"{info['title']} (seed {info['seed']})"
    return ", ".join([name, *how])


BY_STOCK_RULE = ("value", "others", "yes", "no", "accuracy", "unreadable", "example")
"""Fields of a score that hold for the stock rule's reading only."""


def rescored(run: ScoredRun, reader: Reader) -> tuple[dict[str, Any], dict[str, list[AnswerLine]], list[str]]:
    """A run's results and answers by another reader, and notes on what it can't read.

    A score is the metric's own arithmetic over the new scores of items, so that pairs stay pairs. Raises UserError where
    no benchmark can be read.
    """
    if run.results.get("reader"):
        raise UserError(f"{shown(run.path)}: its answers were already read again, name the run that they are from")
    entries, answers, notes = {}, {}, []
    for task, entry in run.results["scores"].items():
        stored, benchmark = read_answers(RunFolder(run.path).answers, task) or [], BENCHMARKS[task]
        if not readable(stored):
            why = "its answers were not kept, or have no single right text, or no score of their own"
            notes.append(f"{benchmark.column}: not read again: {why}")
            continue
        answers[task] = [reread(reader, line, counted=bool(benchmark.counted)) for line in stored]
        score, metric = units(task, answers[task]).score, f"{entry.get('metric', '')}, {reader}"
        kept = {field: value for field, value in entry.items() if field not in BY_STOCK_RULE}
        entries[task] = kept | yes_no(benchmark, answers[task]) | {"score": score, "metric": metric}
    if not entries:
        raise UserError([f"{shown(run.path)}: {note}" for note in notes])
    about = {"scores": entries, "model": f"{run.name}, read by {reader}", "reader": reader}
    return {**run.results, **about}, answers, notes


def scores(results: Mapping[str, Any]) -> dict[str, float]:
    """0..100 by task, and accuracies by their names, see `benchmarks.NAMES`."""
    return {name: float(entry["score"]) for name, entry in with_accuracies(results["scores"]).items()}


def items(results: Mapping[str, Any]) -> dict[str, int]:
    """The number of questions, by task."""
    return {task: int(entry["items"]) for task, entry in results["scores"].items()}


def require_one_table(runs: Sequence[ScoredRun], teacher: TeacherScores = None) -> None:
    """Check that runs, their teacher's scores and those of the baselines fit into one table.

    All answered the same questions and were scored with the same versions as the first, and the runs of a row differ
    in nothing but their seeds. Raises UserError with every field that differs.
    """
    scored = [(shown(run.path), asked(run.results)) for run in runs]
    scored += [(name, asked(teacher[name])) for name in ("teacher", *BASELINES) if teacher and name in teacher]
    problems = list(unlike_the_first(scored))
    for row in grouped((run.path.parent, run) for run in runs if run.is_run).values():
        problems += unlike_the_first([(shown(run.path), run.settings) for run in row])
    if problems:
        raise UserError(problems, hint=HINT)


def asked(results: Mapping[str, Any]) -> dict[str, Any]:
    """What results in one table have in common: their questions, their metrics, and the versions that scored them."""
    fields = {what: results[what] for what in ("world", "split", "sets_key")}
    fields |= {
        "reader": results.get("reader", "stock"),
        "benchmarks": sorted(results["scores"]),
        "items": items(results),
    }
    stock = {task: entry for task, entry in results["scores"].items() if BENCHMARKS[task].stock}
    fields |= {f"metric of {task}": entry.get("metric") for task, entry in stock.items()}
    return fields | (results.get("versions") or {})


def unlike_the_first(named: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """A line for each field in which one of them differs from the first, without those that follow from another."""
    (first, reference), *others = named
    for name, theirs in others:
        fields = dict.fromkeys((*reference, *theirs))
        differing = [what for what in fields if reference.get(what) != theirs.get(what)]
        for what in differing:
            follows = "benchmarks" in differing if what == "items" else what == "sets_key" and len(differing) > 1
            if not follows:
                values = one_or_each(theirs.get(what)), one_or_each(reference.get(what))
                yield f"{name}: {what} is {values[0]}, that of {first} is {values[1]}"


def one_or_each(value: Any) -> str:
    """A value as text; a mapping whose values are all the same becomes that value."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        same = set(value.values())
        return str(same.pop()) if len(same) == 1 else ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)
