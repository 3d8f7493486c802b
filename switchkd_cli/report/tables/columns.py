"""The columns of every table of scores (benchmarks in the paper's order, then their average), and lines under them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.report.document.cells import Cell, Number
from switchkd_cli.report.document.model import AVERAGE_HEAD, Line, Table
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores, require_same_questions, scores
from switchkd_cli.report.results.row_runs import Score
from switchkd_cli.report.stats.baselines import BASELINES
from switchkd_cli.runs.run_folder import shown

AVERAGE = "average"  # its name among a recipe's printed numbers


@dataclass(frozen=True)
class Columns:
    """The benchmarks shown, and why some of them do not count."""

    tasks: tuple[str, ...]
    not_beaten: Mapping[str, tuple[str, ...]]
    """By task: the baselines that the teacher does not clearly beat. Such a task is in no average."""

    @classmethod
    def of(cls, tasks: Iterable[str], teacher: TeacherScores | None) -> Columns:
        """Without a teacher every task counts."""
        shown = set(tasks)
        verdict = teacher["not_beaten"] if teacher else {}
        not_beaten = {task: tuple(names) for task, names in verdict.items() if task in shown}
        return cls(tuple(task for task in BENCHMARKS if task in shown), not_beaten)

    @classmethod
    def of_runs(cls, runs: Sequence[ScoredRun], teacher: TeacherScores | None) -> Columns:
        """Raises UserError when runs, teacher and baselines were not asked the same questions."""
        named = [(shown(run.path), run.results) for run in runs]
        named += [(name, teacher[name]) for name in ("teacher", *BASELINES) if teacher and name in teacher]
        require_same_questions(named)
        return cls.of(runs[0].scores, teacher)

    @property
    def heads(self) -> tuple[str, ...]:
        return (*(BENCHMARKS[task].column for task in self.tasks), AVERAGE_HEAD)

    @property
    def counted_tasks(self) -> list[str]:
        """The tasks that are in the average."""
        return [task for task in self.tasks if task not in self.not_beaten]

    def average(self, scores: Mapping[str, float]) -> float | None:
        """The plain mean of the tasks that count (paper, section 5: Avg10); None when none does."""
        return fmean(scores[task] for task in self.counted_tasks) if self.counted_tasks else None

    def run_average(self, run: ScoredRun) -> float | None:
        return self.average(run.scores)

    @property
    def figures(self) -> dict[str, Score]:
        """What each column shows of a run, by task, then the average under `AVERAGE`."""
        return {task: lambda run, task=task: run.scores[task] for task in self.tasks} | {AVERAGE: self.run_average}

    def cells(self, scores: Mapping[str, float], *, difference: bool = False) -> tuple[Cell, ...]:
        """A line of scores, or of differences, with its average."""
        each = [Number(scores[task], difference=difference, counted=task not in self.not_beaten) for task in self.tasks]
        average = self.average(scores)
        return (*each, None if average is None else Number(average, difference=difference))

    def printed(self, paper: Mapping[str, float]) -> tuple[Cell, ...]:
        """A line of the paper's numbers, its average as printed."""
        return tuple(Number(paper[name]) if name in paper else None for name in (*self.tasks, AVERAGE))

    def of_teacher(self, teacher: TeacherScores | None) -> Iterator[Line]:
        if teacher and "teacher" in teacher:
            yield Line("teacher", self.cells(scores(teacher["teacher"])), "teacher")

    def of_baselines(self, teacher: TeacherScores | None) -> Iterator[Line]:
        for name in BASELINES:
            if teacher and name in teacher:
                yield Line(name, self.cells(scores(teacher[name])), "baseline")

    def table(
        self, head: str, teacher: TeacherScores | None, rows: Iterable[Line], runs: Sequence[ScoredRun], title: str = ""
    ) -> Table:
        """A table of scores: the teacher, the rows, the baselines, the paper's numbers of the rows' runs."""
        lines = (*self.of_teacher(teacher), *rows, *self.of_baselines(teacher), *self._of_paper(runs))
        return Table((head, *self.heads), lines, title)

    def _of_paper(self, runs: Sequence[ScoredRun]) -> Iterator[Line]:
        """The printed numbers, a line for each row of a recipe that has some."""
        for run in {(run.recipe, run.row): run for run in runs if run.paper}.values():
            yield Line(run.title, self.printed(run.paper), "paper")
