"""Which benchmarks may be counted: those where the teacher clearly beats answering without looking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from switchkd_cli.report.stats.credible import clearly_beats, read_items

BASELINES: dict[str, str] = {"majority": "the majority answer", "blind": "itself without the picture"}
"""Field of the teacher's results -> what the teacher has to beat."""


def judged(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results `{"teacher":…, "majority":…, "blind":…}` and, under "not_beaten", the verdict by task.

    A task's verdict names the baselines that the teacher does not clearly beat: its items do not lie clearly
    above theirs, or its score is no higher (F1 can favour a constant that is often wrong). The answers are
    read from `folder`/<field>/answers/<task>.jsonl. Without a teacher there is no verdict.
    """
    teacher = results["teacher"]["scores"] if "teacher" in results else ()
    verdict = {
        task: [name for name in BASELINES if name in results and not _beats(folder, results, name, task)]
        for task in teacher
    }
    return {**results, "not_beaten": {task: names for task, names in verdict.items() if names}}


def _beats(folder: Path, results: Mapping[str, Mapping[str, Any]], name: str, task: str) -> bool:
    ours, theirs = (results[who]["scores"][task]["score"] for who in ("teacher", name))
    items = [read_items(folder / who / "answers" / f"{task}.jsonl") for who in ("teacher", name)]
    return ours > theirs and clearly_beats(*items)
