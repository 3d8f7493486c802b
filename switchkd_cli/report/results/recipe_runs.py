"""One recipe with all its runs: the finished ones, the state of the others, and each row's controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from switchkd_cli.benchmarks import in_order
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import read_json
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Recipe
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores, read, require_one_table
from switchkd_cli.report.results.paired_items import AnswerUnits, answer_units
from switchkd_cli.report.results.row_runs import RowRuns
from switchkd_cli.report.texts import TEXTS
from switchkd_cli.runs import run_folder

State = Literal["finished", "unscored", "failed", "unfinished", "missing"]
STATES: Mapping[State, str] = TEXTS["state"]
ControlKind = Literal["steps", "compute"]
CONTROL_KINDS: Mapping[ControlKind, str] = {"steps": "SFT at equal steps", "compute": "SFT at equal compute"}


@dataclass(frozen=True)
class RecipeRuns:
    """A recipe's rows over all seeds that were started, and the scores of its teacher."""

    file: Path
    planned_rows: tuple[Run, ...]
    """A run for each row, in the recipe's order, in the requested world."""
    own_world_rows: tuple[Run, ...]
    """The same in the recipe's own world: with the models that it names."""
    states: Mapping[tuple[str, int], State]
    """By row and seed, for the rows that were started with some seed."""
    runs: tuple[ScoredRun, ...]
    """Those that finished with scores, by row, seeds in ascending order."""
    changed_rows: tuple[str, ...]
    """Titles of rows whose runs had overrides, or another text of the recipe than today's."""
    teacher: TeacherScores
    """None without scores of a teacher, or where the rows have several."""

    @property
    def name(self) -> str:
        """The folder of its runs, such as `components@playground`."""
        return self.planned_rows[0].recipe

    @property
    def stem(self) -> str:
        """The name of the recipe's file."""
        return self.name.partition("@")[0]

    @property
    def title(self) -> str:
        return self.planned_rows[0].config.title

    @property
    def seeds(self) -> list[int]:
        """Every seed that some row has a run of."""
        return sorted({seed for _, seed in self.states})

    @cached_property
    def started_rows(self) -> tuple[Run, ...]:
        """The planned rows that were started with some seed."""
        return tuple(run for run in self.planned_rows if any(row == run.row for row, _ in self.states))

    @property
    def rows_not_started(self) -> list[str]:
        """Titles of the rows without any run."""
        return [run.title for run in self.planned_rows if run not in self.started_rows]

    @cached_property
    def rows(self) -> tuple[RowRuns, ...]:
        """The rows that have finished runs."""
        return tuple(row for run in self.planned_rows if (row := self.row(run.row)).runs)

    def row(self, name: str | None) -> RowRuns:
        """The finished runs of a row; none of them where there is no such row."""
        title = next((run.title for run in self.planned_rows if run.row == name), "")
        return RowRuns(title, title, tuple(run for run in self.runs if run.row == name))

    @cached_property
    def refusal(self) -> str:
        """Why the runs can't stand in one table; empty where they can."""
        try:
            _ = self.answers
        except UserError as refused:
            return "; ".join(refused.problems)
        return ""

    @cached_property
    def answers(self) -> AnswerUnits:
        """The answers of all runs. Raises UserError where the runs can't stand in one table."""
        require_one_table(self.runs, self.teacher)
        return answer_units(self.runs, in_order(set.intersection(*(set(run.results["scores"]) for run in self.runs))))

    def control(self, row: RowRuns, kind: ControlKind) -> RowRuns:
        """The finished runs of a row's control."""
        return self.row(control_of(self.own_world_rows, row.row, kind))

    def controls(self, kind: ControlKind) -> list[Run]:
        """The rows that are a control of that kind, in the recipe's order."""
        names = {control_of(self.own_world_rows, run.row, kind) for run in self.own_world_rows}
        return [run for run in self.own_world_rows if run.row in names]

    def unfinished(self) -> Iterator[tuple[State, str, list[int]]]:
        """State, row title and seeds of the runs that did not finish with scores."""
        for state in STATES:
            for run in self.started_rows if state != "finished" else ():
                if seeds := [seed for seed in self.seeds if self.states[run.row, seed] == state]:
                    yield state, run.title, seeds


def control_of(rows: Sequence[Run], row: str, kind: ControlKind) -> str | None:
    """The control of `row`, found by what it does; None for the control itself, or where the recipe has none.

    That is the SFT of the row's own student, else of the studied row's. `rows` are all of the recipe, in its order and
    with the models that it names; the first is the studied row.
    """
    own = next(run for run in rows if run.row == row)
    students = [run.config.student for run in (own, rows[0])]
    controls = [run for run in rows if run.config.student in students and _is_control(run, rows[0], kind)]
    first = min(controls, key=lambda run: students.index(run.config.student), default=own)
    return None if first is own else first.row


def _is_control(run: Run, studied: Run, kind: ControlKind) -> bool:
    """Whether a run is SFT of the parts of its student that the studied row trains."""
    last, same = run.config.stages[-1], studied.config.stages[-1]
    length, equal = (float(stage.steps or stage.epochs or 0) for stage in (last, same))
    parts = set(same.train) - {"adapter"}  # no part of the student
    supervised = not any(stage.needs_teacher for stage in run.config.stages)
    return supervised and set(last.train) == parts and (length == equal if kind == "steps" else length > equal)


def gather(file: Path, world: str | None, root: Path) -> RecipeRuns:
    """Read every run of the recipe's rows under `root`."""
    planned = load_rows(file, world=world)
    plain = load_rows(file) if world is not None else planned
    folders = {
        (run.row, int(seed)): run_folder.RunFolder(path)
        for run in planned
        for path in run_folder.folder(root, run).path.parent.glob("seed*")
        if (seed := path.name.removeprefix("seed")).isdecimal()
    }
    seeds = sorted({seed for _, seed in folders})
    started = dict.fromkeys(row for row, _ in folders)  # in the recipe's order
    states = {(row, seed): _state(folders.get((row, seed))) for row in started for seed in seeds}
    runs = tuple(read(folders[place]) for place, state in states.items() if state == "finished")
    first = {run.row: run_folder.RunFolder(run.path).run() for run in reversed(runs)}
    changed = (run.title for run in planned if run.row in first and _config(first[run.row]) != _config(run))
    teacher = run_folder.teacher_scores(root, list(first.values()))
    return RecipeRuns(file, planned, plain, states, runs, tuple(changed), teacher)


def _state(folder: run_folder.RunFolder | None) -> State:
    status = folder and folder.info().get("status")
    if folder and status == "finished":
        return "finished" if read_json(folder.results) else "unscored"
    return "missing" if status is None else "failed" if status == "failed" else "unfinished"


def _config(run: Run) -> Recipe:
    """What a run does, whatever its seed."""
    return run.config.model_copy(update={"seed": 0, "rows": {}, "controls": ()})
