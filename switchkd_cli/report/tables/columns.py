"""The columns of every table of scores: benchmarks in the paper's order, then their average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.report.tables.cells import Cell, Number

AVERAGE = "average"  # its name among a recipe's printed numbers


@dataclass(frozen=True)
class Columns:
    """The benchmarks shown, and why some of them do not count."""

    tasks: tuple[str, ...]
    not_beaten: Mapping[str, tuple[str, ...]]
    """By task: the baselines that the teacher does not clearly beat. Such a task is in no average."""

    @classmethod
    def of(cls, tasks: Iterable[str], teacher: Mapping[str, Any] | None) -> Columns:
        """`teacher` is what `baselines.judged` returns. Without a teacher every task counts."""
        asked = set(tasks)
        verdict = teacher["not_beaten"] if teacher else {}
        kept = {task: tuple(names) for task, names in verdict.items() if task in asked}
        return cls(tuple(task for task in BENCHMARKS if task in asked), kept)

    @property
    def heads(self) -> tuple[str, ...]:
        return (*(BENCHMARKS[task].column for task in self.tasks), "Avg")

    def average(self, scores: Mapping[str, float]) -> float | None:
        """The plain mean of the tasks that count (paper, section 5: Avg10); None when none does."""
        counted = [scores[task] for task in self.tasks if task not in self.not_beaten]
        return fmean(counted) if counted else None

    def cells(self, scores: Mapping[str, float], *, difference: bool = False) -> tuple[Cell, ...]:
        """A line of scores, or of differences, with its average."""
        average = self.average(scores)
        each = [
            Number(scores[task], difference=difference, counted=task not in self.not_beaten)
            for task in self.tasks
        ]
        return (*each, None if average is None else Number(average, difference=difference))

    def means(self, scores: Sequence[Mapping[str, float]]) -> tuple[Cell, ...]:
        """A line of mean scores."""
        return self.cells({task: fmean(each[task] for each in scores) for task in self.tasks})

    def printed(self, paper: Mapping[str, float]) -> tuple[Cell, ...]:
        """A line of the paper's numbers, its average as printed."""
        return tuple(Number(paper[name]) if name in paper else None for name in (*self.tasks, AVERAGE))


def minus(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Task by task, in points."""
    return {task: score - theirs[task] for task, score in ours.items()}
