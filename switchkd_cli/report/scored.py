"""A finished run as the tables need it, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from switchkd_cli.errors import UserError
from switchkd_cli.runs import RunFolder, read_json

SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same data, ten times as fast


@dataclass(frozen=True)
class Scored:
    """One run: who it is, what it was asked, how it did."""

    path: Path
    recipe: str
    row: str
    title: str
    seed: int
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
    def name(self) -> str:
        return f"{self.title} (seed {self.seed})"

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
    """The run in a folder. Raises UserError when it has no scores."""
    info, results = folder.info(), read_json(folder.results)
    if not info or not results:
        raise UserError(f"{folder.path}: no scores: {folder.results.name} is missing or unreadable")
    resolved = yaml.load(folder.recipe.read_text(encoding="utf-8"), Loader=SAFE)
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
        warnings={line["about"]: line["text"] for line in lines if line.get("event") == "warning"},
        trained=sum(_clocks(lines).values()),
        gib=_gib(lines),
        info=info,
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
    """The lines of metrics.jsonl: steps and events; none where there is no such file."""
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The clock of the last stage at its last step."""
    return next(reversed(_clocks(lines).values()), None)


def _clocks(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each trained stage's clock at its last step, in their order."""
    return {
        line["stage"]: line["seconds"] for line in lines if "step" in line and line.get("seconds") is not None
    }


def _gib(lines: Sequence[Mapping[str, Any]]) -> float | None:
    peaks = [line["memory_mib"] for line in lines if line.get("memory_mib") is not None]
    return max(peaks) / 1024 if peaks else None
