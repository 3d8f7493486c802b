"""Finished runs with made-up scores, on disk as the commands leave them."""

import json
from pathlib import Path
from types import SimpleNamespace

from switchkd_cli.runs.run_folder import RunFolder

ITEMS = 100
STAGES = "stages: [{name: pretrain, steps: 60, batch: 32}, {name: distill, steps: 300, batch: 32}]\n"


def results(scores, *, world="playground", split="test", items=ITEMS, sets_key="k", versions=None):
    entries = {task: {"score": value, "metric": "m", "items": items, "seconds": 1.0} for task, value in scores.items()}
    return {
        "world": world,
        "split": split,
        "seed": 0,
        "scores": entries,
        "sets_key": sets_key,
        "versions": versions or {},
    }


def run(root: Path, row: str, title: str, scores, *, seed=0, paper=None, seconds=100.0, stages=STAGES, **asked):
    """A finished run's folder under `root`."""
    folder = RunFolder(root / "quick" / row / f"seed{seed}")
    folder.path.mkdir(parents=True)
    info = {"status": "finished", "recipe": "quick", "row": row, "title": title, "seed": seed, "paper": paper or {}}
    folder.record.write_text(json.dumps(info))
    folder.recipe.write_text(stages)
    lines = [
        {"event": "stage", "stage": "pretrain"},
        {"stage": "pretrain", "step": 60, "seconds": 7.0},
        {"stage": "distill", "step": 299, "seconds": seconds - 1},
        {"stage": "distill", "step": 300, "seconds": seconds},
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.results.write_text(json.dumps(results(scores, **asked)))
    return folder


def planned_without_teacher(folder: RunFolder) -> SimpleNamespace:
    """Of the run that a folder was made for, what says whose scores stand in its table."""
    return SimpleNamespace(teacher_key="none", config=SimpleNamespace(teacher=None))


NAMES = ("teacher", "blind", "majority")


def teacher(scores, blind, majority, not_beaten=None, **asked):
    """What `report.stats.baselines.with_verdict` returns."""
    each = zip(NAMES, (scores, blind, majority), strict=True)
    return {name: results(value, **asked) for name, value in each} | {"not_beaten": not_beaten or {}}
