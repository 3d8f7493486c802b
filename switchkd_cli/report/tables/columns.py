"""The columns of every table of scores: benchmarks in the paper's order, others, the average, and how each was measured."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Self

from switchkd_cli.benchmarks import ACCURACY, BENCHMARKS, LMMS_EVAL, ROW_METRICS, TEN, Benchmark, head, in_order
from switchkd_cli.report.document import AVERAGE_HEAD, Cell, Column, Line, LineKind, Number, Table
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores, require_one_table, scores
from switchkd_cli.report.results.row_runs import Score, mean_of
from switchkd_cli.report.stats.baselines import BASELINES

AVERAGE = "average"  # its name among a recipe's printed numbers


@dataclass(frozen=True)
class Columns:
    """The benchmarks shown, and why some of them do not count."""

    names: tuple[str, ...]
    """The scores shown, and the accuracies next to them (`benchmarks.NAMES`)."""
    teacher: Mapping[str, Any]
    """Empty without a teacher: then every task counts."""

    @classmethod
    def of(cls, names: Collection[str], teacher: TeacherScores) -> Self:
        return cls(in_order(names), teacher or {})

    @classmethod
    def of_runs(cls, runs: Sequence[ScoredRun], teacher: TeacherScores) -> Self:
        """Raises UserError as `require_one_table` does: for the teacher and the baselines, too."""
        require_one_table(runs, teacher)
        return cls.of(set.intersection(*(set(run.scores) for run in runs)), teacher)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if not name.endswith(ACCURACY))

    @cached_property
    def not_beaten(self) -> dict[str, tuple[str, ...]]:
        """By task: the baselines that the teacher does not clearly beat. Such a task is in no average."""
        verdict = self.teacher.get("not_beaten", {})
        return {task: tuple(names) for task, names in verdict.items() if task in self.tasks}

    @property
    def heads(self) -> tuple[str, ...]:
        return (*map(head, self.names), AVERAGE_HEAD)

    @cached_property
    def averaged(self) -> list[str]:
        """The tasks that the average is of: the paper's, or where none of these is shown the metrics of one's own rows."""
        of_paper = [task for task in self.tasks if task in TEN]
        return of_paper or [task for task in self.tasks if task in ROW_METRICS and BENCHMARKS[task].in_points]

    @property
    def counted_tasks(self) -> list[str]:
        """The tasks that are in the average."""
        return [task for task in self.averaged if task not in self.not_beaten]

    def counts(self, name: str) -> bool:
        """Whether a column is the average, or in it, or there is no average that it could be left out of."""
        return name == AVERAGE or name in self.counted_tasks or not self.averaged

    def shown(self, name: str) -> dict[str, Any]:
        """How a column's numbers are shown: see `document.Number`."""
        return {"counted": self.counts(name), "digits": BENCHMARKS[name].digits if name in self.tasks else 1}

    @cached_property
    def figures(self) -> dict[str, Sequence[str]]:
        """The scores that each column is the mean of, by name; under `AVERAGE` those that count (paper, section 5: Avg10)."""
        return {**{name: [name] for name in self.names}, AVERAGE: self.counted_tasks}

    @property
    def run_average(self) -> Score:
        """The average of a run; None where no task counts."""
        return mean_of(self.counted_tasks)

    def cells(self, scores: Mapping[str, float], minus: Mapping[str, float] | None = None) -> tuple[Cell, ...]:
        """A line of scores, or of their differences from others, with its average."""
        if minus is not None:
            scores = {name: scores[name] - minus[name] for name in self.names}
        known = {name: tasks for name, tasks in self.figures.items() if tasks and scores.keys() >= set(tasks)}
        means = {name: fmean(scores[task] for task in tasks) for name, tasks in known.items()}
        each = {name: Number(mean, difference=minus is not None, **self.shown(name)) for name, mean in means.items()}
        return tuple(map(each.get, self.figures))

    def printed(self, paper: Mapping[str, float]) -> tuple[Cell, ...]:
        """A line of the paper's numbers, its average as printed."""
        return tuple(Number(paper[name]) if name in paper else None for name in self.figures)

    def scored(self, *names: str, before: tuple[Cell, ...] = ()) -> list[Line]:
        """The lines of the teacher or of baselines, where they were scored, with other cells before the scores."""
        kinds: dict[str, LineKind] = {"teacher": "teacher", **dict.fromkeys(BASELINES, "baseline")}
        known = [name for name in names if name in self.teacher]
        return [Line(name, (*before, *self.cells(scores(self.teacher[name]))), kinds[name]) for name in known]

    def table(self, head: str, rows: Iterable[Line], runs: Sequence[ScoredRun], title: str = "") -> Table:
        """A table of scores: the teacher, the rows, the baselines, the printed numbers of each row that has some."""
        printed = {(run.recipe, run.row): run for run in runs if run.paper}.values()
        paper = [Line(run.title, self.printed(run.paper), "paper") for run in printed]
        return Table((head, *self.heads), (*self.scored("teacher"), *rows, *self.scored(*BASELINES), *paper), title)


def protocol(tasks: Sequence[str], world: str, split: str, measured: Mapping[str, Mapping[str, Any]]) -> Table:
    """How each benchmark was measured; where the paper differs, its way stands in parentheses.

    `measured` are the scores of a results.json, by task: what lmms-eval declares of a task without an entry.
    """

    def row(task: str) -> Benchmark:
        entry, about = BENCHMARKS[task], measured.get(task, {})
        if not entry.stock:
            return replace(entry, split=entry.split if world == "hub" else f"{world}, {split}")
        own = str(about.get("split") or entry.split)
        scale = f"{entry.scale}, {'higher' if about.get('higher_is_better', True) else 'lower'} is better"
        return replace(entry, metric=str(about.get("metric")), split=own, paper_split=own, scale=scale)

    def differs(here: str, paper: str) -> str:
        return here if here == paper else f"{here} (paper: {paper})"

    columns: tuple[Column, ...] = (
        ("protocol", "column"),
        ("split", lambda row: differs(row.split, row.paper_split)),
        ("metric", "metric"),
        ("scale", "scale"),
        ("OCR", lambda row: differs(*("on" if flag else "off" for flag in (row.ocr, row.paper_ocr)))),
        ("scored by", lambda row: f"{row.task}: {differs(row.judge, row.paper_judge or row.judge)}"),
    )
    title = f"protocol: stock tasks of lmms-eval {LMMS_EVAL}, and the paper's where it differs"
    return Table.of([row(task) for task in tasks], columns, title=title, source="protocol")
