"""Read a finished run, or an evaluated model, from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from switchkd_cli.errors import UserError, printable
from switchkd_cli.files.atomic import read_json
from switchkd_cli.recipe.model_paths import ASSETS, SHIPPED
from switchkd_cli.runs.file_schemas import Resolved, Results, check
from switchkd_cli.runs.run_folder import RunFolder, shown

UNKNOWN = "–"  # the recipe of a model that was only scored
SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same data, ten times as fast

TeacherScores = Mapping[str, Any]
"""Results of "teacher", "majority" and "blind", and "not_beaten": see `stats.baselines.with_verdict`."""


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
    """results.json, written by engine/evaluation/score_model.py."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's printed numbers, by benchmark."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """The stages of the resolved recipe."""
    seconds: float | None = None
    """Training time of the last stage; earlier stages may be shared between runs."""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """Name in the recipe -> its stand-in, where the run used another world than its recipe's."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library versions of the training; those of the scoring are in `results`."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Training warnings: subject -> text."""
    trained: float = 0.0
    """Seconds of all stages that this run trained itself; a stage that it reused counts 0."""
    gib: float | None = None
    """The highest logged peak: the accelerator's memory, or the process's where there is none."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """run.json: key, command, commit, machine, times."""

    @property
    def is_run(self) -> bool:
        """Whether it was trained here; otherwise only its scores are known."""
        return self.seed is not None

    @property
    def name(self) -> str:
        return f"{self.title} (seed {self.seed})" if self.is_run else self.title

    @property
    def home(self) -> Path:
        """The row's folder, which its runs share; a scored model has only its own."""
        return self.path.parent if self.is_run else self.path

    @property
    def ablation(self) -> str:
        """The command that runs all rows of its recipe in the same world."""
        recipe, _, world = self.recipe.partition("@")
        return f"switchkd ablate {recipe}" + (f" --world {world}" if world else "")

    @cached_property
    def scores(self) -> dict[str, float]:
        """0..100 by task."""
        return scores(self.results)

    @property
    def fidelity(self) -> Mapping[str, Any] | None:
        """`agreement` (0..1) with the teacher, `kl` (nats), `positions`, `data`; None where not measured."""
        return self.results.get("fidelity")

    @property
    def length(self) -> str:
        """Training length, such as `pretrain 60 steps of 32, distill 300 steps of 32`."""
        lengths = (f"{s['steps']} steps" if s.get("steps") else f"{s['epochs']:g} epochs in steps" for s in self.stages)
        return ", ".join(f"{s['name']} {n} of {s['batch']}" for s, n in zip(self.stages, lengths, strict=True))


def read(folder: RunFolder) -> ScoredRun:
    """The run, or the evaluated model, in a folder. Raises UserError when it has no scores."""
    info, results = folder.info(), read_json(folder.results)
    evaluated = not folder.record.exists()
    if not results or not (info or evaluated):
        raise UserError(f"{folder.path}: no scores: {folder.results.name} is missing or unreadable")
    check(Results, results, folder.results)
    if evaluated:  # the model's name: a hub id, a shipped model, or the path of its folder
        name = printable(str(results["model"]))
        path = Path(name)
        name = SHIPPED + str(path.relative_to(ASSETS)) if path.is_relative_to(ASSETS) else shown(path)
        return ScoredRun(folder.path, UNKNOWN, name, name, None, results)
    if absent := [field for field in ("recipe", "row", "title", "seed") if field not in info]:
        raise UserError(f"{folder.record}: says no {', '.join(absent)}")
    resolved = check(Resolved, _yaml(folder.recipe), folder.recipe)
    lines = read_metrics(folder.metrics)
    clocks = {
        line["stage"]: line["seconds"] for line in lines if "step" in line and type(line.get("seconds")) in (int, float)
    }  # of each trained stage at its last step, in their order
    peaks = [line["memory_mib"] for line in lines if type(line.get("memory_mib")) in (int, float)]
    warnings = [line for line in lines if line.get("event") == "warning"]
    return ScoredRun(
        path=folder.path,
        recipe=info["recipe"],
        row=info["row"],
        title=info["title"],
        seed=info["seed"],
        results=results,
        paper=info.get("paper") or {},
        stages=tuple(resolved["stages"]),
        seconds=next(reversed(clocks.values()), None),
        stand_ins=resolved.get("stand_ins") or {},
        versions=info.get("versions") or {},
        warnings={printable(str(w.get("about"))): printable(str(w.get("text"))) for w in warnings},
        trained=sum(clocks.values()),
        gib=max(peaks) / 1024 if peaks else None,
        info=info,
    )


def _yaml(file: Path) -> Any:
    """Raises UserError where the file can't be read as YAML."""
    try:
        if not file.is_file():
            raise OSError("no such file")
        return yaml.load(file.read_text(encoding="utf-8"), Loader=SAFE)
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not readable as YAML: {printable(str(error).splitlines()[0])}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable: {error}") from None


def scores(results: Mapping[str, Any]) -> dict[str, float]:
    """0..100 by task."""
    return {task: float(entry["score"]) for task, entry in results["scores"].items()}


def items(results: Mapping[str, Any]) -> dict[str, int]:
    """The number of questions, by task."""
    return {task: int(entry["items"]) for task, entry in results["scores"].items()}


def require_same_questions(named: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Check that named results answer the same questions as the first ones.

    Raises UserError with every field that differs: scores of different questions stand in no table.
    """
    (first, reference), *others = [(name, _questions(results)) for name, results in named]
    problems = []
    for name, theirs in others:
        differing = [what for what in reference if reference[what] != theirs[what]]
        if "benchmarks" in differing:  # then the items differ because of it
            differing.remove("items")
        for what in differing:
            if what != "sets_key" or differing == ["sets_key"]:
                values = one_or_each(theirs[what]), one_or_each(reference[what])
                problems.append(f"{name}: {what} is {values[0]}, that of {first} is {values[1]}")
    if problems:
        raise UserError(problems, hint="compare runs that were asked the same questions: switchkd eval")


def _questions(results: Mapping[str, Any]) -> dict[str, Any]:
    counts = items(results)
    same = {field: results[field] for field in ("world", "split")}
    return same | {"benchmarks": sorted(counts), "items": counts, "sets_key": results["sets_key"]}


def one_or_each(value: Any) -> str:
    """A value as text; a mapping whose values are all the same becomes that value."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        same = set(value.values())
        return str(same.pop()) if len(same) == 1 else ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)


def read_metrics(metrics: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl (steps and events); an empty list where there is no such file.

    Lines that can't be read become one warning that counts them.
    """
    if not metrics.is_file():
        return []
    lines, unreadable = [], 0
    for text in metrics.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            unreadable += 1
    if unreadable:
        words = f"{unreadable} lines of {metrics.name} can't be read"
        lines.append({"event": "warning", "about": metrics.name, "text": words})
    return lines
