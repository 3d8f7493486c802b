"""A finished run as the tables need it, read from its folder."""

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


@dataclass(frozen=True)
class Scored:
    """One run, or one model that `switchkd eval` scored: who it is, what it was asked, how it did."""

    path: Path
    recipe: str
    row: str
    title: str
    seed: int | None
    """None of a model of which only the scores are known: no seed, no training, no recipe."""
    results: Mapping[str, Any]
    """results.json, see engine/evaluate.py."""
    paper: Mapping[str, float]
    stages: tuple[Mapping[str, Any], ...]
    """The stages of the resolved recipe."""
    seconds: float | None
    """How long the last stage was trained; earlier stages may be shared between runs."""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """What stood in for what, where the run was made in another world than its recipe's."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what the run was trained with; those of its scoring are in its results."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """What its diagnostics gave away: what each is about, and its words."""
    trained: float = 0.0
    """Seconds of all stages that it trained itself; a stage that it took over from another run took it none."""
    gib: float | None = None
    """The highest peak that it logged: the accelerator's memory, or the process's where there is none."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """run.json: its key, command, commit, machine, times."""

    @property
    def is_run(self) -> bool:
        """Whether it was trained here; else nothing but its scores is known."""
        return self.seed is not None

    @property
    def name(self) -> str:
        return f"{self.title} (seed {self.seed})" if self.is_run else self.title

    @property
    def home(self) -> Path:
        """What the runs of its row share: the row's folder; a model stands alone."""
        return self.path.parent if self.is_run else self.path

    @property
    def ablation(self) -> str:
        """The command that runs all rows of its recipe, in the world in which it was run."""
        recipe, _, world = self.recipe.partition("@")
        return f"switchkd ablate {recipe}" + (f" --world {world}" if world else "")

    @cached_property
    def scores(self) -> dict[str, float]:
        """0..100 by task."""
        return scores(self.results)

    @property
    def answers(self) -> Path:
        """The folder of its answers, one file a benchmark."""
        return RunFolder(self.path).answers

    @property
    def fidelity(self) -> Mapping[str, Any] | None:
        """`agreement` (0..1), `kl` (nats), `positions`, `data`, against the teacher; None where not measured."""
        return self.results.get("fidelity")

    @property
    def length(self) -> str:
        """`pretrain 60 steps of 32, distill 300 steps of 32`, in rows."""
        return ", ".join(f"{s['name']} {_steps(s)} of {s['batch']}" for s in self.stages)


def read(folder: RunFolder) -> Scored:
    """The run, or the evaluated model, in a folder. Raises UserError when it has no scores."""
    info, results = folder.info(), read_json(folder.results)
    if results and not folder.record.exists():
        return _evaluated(folder, results)
    if not info or not results:
        raise UserError(f"{folder.path}: no scores: {folder.results.name} is missing or unreadable")
    check(Results, results, folder.results)
    if absent := [field for field in ("recipe", "row", "title", "seed") if field not in info]:
        raise UserError(f"{folder.record}: says no {', '.join(absent)}")
    resolved = check(Resolved, _yaml(folder.recipe), folder.recipe)
    lines = logged(folder.metrics)
    return Scored(
        path=folder.path,
        recipe=info["recipe"],
        row=info["row"],
        title=info["title"],
        seed=info["seed"],
        results=results,
        paper=info.get("paper") or {},
        stages=tuple(resolved["stages"]),
        seconds=_seconds(lines),
        stand_ins=resolved.get("stand_ins") or {},
        versions=info.get("versions") or {},
        warnings={
            printable(str(line.get("about"))): printable(str(line.get("text")))
            for line in lines
            if line.get("event") == "warning"
        },
        trained=sum(_clocks(lines).values()),
        gib=_gib(lines),
        info=info,
    )


def _yaml(file: Path) -> Any:
    """Raises UserError where it is none."""
    try:
        return yaml.load(_text(file), Loader=SAFE)
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not readable as YAML: {printable(str(error).splitlines()[0])}") from None


def _evaluated(folder: RunFolder, results: Mapping[str, Any]) -> Scored:
    """A model called by its name: a hub id, a shipped one, or where its folder is."""
    check(Results, results, folder.results)
    name = printable(str(results["model"]))
    where = Path(name)
    name = SHIPPED + str(where.relative_to(ASSETS)) if where.is_relative_to(ASSETS) else shown(where)
    return Scored(
        path=folder.path,
        recipe=UNKNOWN,
        row=name,
        title=name,
        seed=None,
        results=results,
        paper={},
        stages=(),
        seconds=None,
    )


def scores(results: Mapping[str, Any]) -> dict[str, float]:
    """0..100 by task."""
    return {task: float(entry["score"]) for task, entry in results["scores"].items()}


def items(results: Mapping[str, Any]) -> dict[str, int]:
    """How many questions each task asked."""
    return {task: int(entry["items"]) for task, entry in results["scores"].items()}


def require_same_questions(asked: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Check that named results answer the same questions as the first ones.

    Raises UserError naming every field that differs: scores of different questions stand in no table.
    """
    (first, reference), *others = [(name, _questions(results)) for name, results in asked]
    problems = [
        f"{name}: {what} is {one_or_each(theirs[what])}, that of {first} is {one_or_each(reference[what])}"
        for name, theirs in others
        for what in _first_differences(reference, theirs)
    ]
    if problems:
        raise UserError(problems, hint="compare runs that were asked the same questions: switchkd eval")


def _questions(results: Mapping[str, Any]) -> dict[str, Any]:
    asked = items(results)
    return {
        "world": results["world"],
        "split": results["split"],
        "benchmarks": sorted(asked),
        "items": asked,
        "sets_key": results["sets_key"],
    }


def _first_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The fields that differ, without those that differ only because another does."""
    found = [what for what in one if one[what] != other[what]]
    if "benchmarks" in found:
        found.remove("items")
    return found if found == ["sets_key"] else [what for what in found if what != "sets_key"]


def one_or_each(value: Any) -> str:
    """Plain text; a mapping whose values are all the same becomes that value."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        same = set(value.values())
        return str(same.pop()) if len(same) == 1 else ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)


def _steps(stage: Mapping[str, Any]) -> str:
    return f"{stage['steps']} steps" if stage.get("steps") else f"{stage['epochs']:g} epochs in steps"


def logged(metrics: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: steps and events; none where there is no such file.

    Lines that can't be read become one warning that counts them.
    """
    if not metrics.is_file():
        return []
    lines, torn = [], 0
    for text in metrics.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            torn += 1
    told = {
        "event": "warning",
        "about": metrics.name,
        "text": f"{torn} lines of {metrics.name} can't be read",
    }
    return [*lines, told] if torn else lines


def _text(file: Path) -> str:
    try:
        if not file.is_file():
            raise OSError("no such file")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable: {error}") from None


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The clock of the last stage at its last step."""
    return next(reversed(_clocks(lines).values()), None)


def _clocks(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each trained stage's clock at its last step, in their order."""
    return {
        line["stage"]: line["seconds"]
        for line in lines
        if "step" in line and type(line.get("seconds")) in (int, float)
    }


def _gib(lines: Sequence[Mapping[str, Any]]) -> float | None:
    peaks = [line["memory_mib"] for line in lines if type(line.get("memory_mib")) in (int, float)]
    return max(peaks) / 1024 if peaks else None
