"""One recipe with all that its runs left: what finished, and what became of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Recipe
from switchkd_cli.report.results.finished_run import Scored, read
from switchkd_cli.report.results.seeds import Group
from switchkd_cli.report.tables.comparison import Teacher
from switchkd_cli.runs import run_folder as runs

State = Literal["finished", "unscored", "failed", "unfinished", "missing"]
STATES: Mapping[State, str] = {
    "finished": "finished and scored",
    "unscored": "finished without scores",
    "failed": "failed",
    "unfinished": "still running or cut off",
    "missing": "never started",
}


@dataclass(frozen=True)
class Gathered:
    """A recipe's rows over the seeds that any of them has, and the scores of its teacher."""

    file: Path
    planned: tuple[Run, ...]
    """A run for each row, in the recipe's order, in the world that was asked for."""
    plain: tuple[Run, ...]
    """The same in the recipe's own world: with the models that it names."""
    states: Mapping[tuple[str, int], State]
    """By row and seed, of the rows that were started with some seed."""
    runs: tuple[Scored, ...]
    """Those that finished with scores, by row, the seeds rising."""
    changed: tuple[str, ...]
    """Titles of rows whose runs had overrides, or another text of the recipe than today's."""
    teacher: Teacher | None
    """None without scores of a teacher, or where the rows have several."""

    @property
    def name(self) -> str:
        """Of the folder of its runs, such as `components@playground`."""
        return self.planned[0].recipe

    @property
    def stem(self) -> str:
        """Of the recipe's file."""
        return self.name.partition("@")[0]

    @property
    def title(self) -> str:
        return self.planned[0].config.title

    @property
    def seeds(self) -> list[int]:
        """Every seed that some row has a run of."""
        return sorted({seed for _, seed in self.states})

    @cached_property
    def asked(self) -> tuple[Run, ...]:
        """The planned rows of which some run was started."""
        return tuple(run for run in self.planned if any(row == run.row for row, _ in self.states))

    @property
    def unasked(self) -> list[str]:
        """Titles of the rows of which there is no run at all."""
        return [run.title for run in self.planned if run not in self.asked]

    @cached_property
    def rows(self) -> tuple[Group, ...]:
        """The rows that have finished runs."""
        found = {run.row: tuple(r for r in self.runs if r.row == run.row) for run in self.planned}
        titles = {run.row: run.title for run in self.planned}
        return tuple(Group(titles[row], titles[row], own) for row, own in found.items() if own)

    def group(self, row: str) -> Group | None:
        return next((group for group in self.rows if group.row == row), None)

    def lacking(self) -> Iterator[tuple[State, str, list[int]]]:
        """What did not finish with scores: state, title of the row, seeds."""
        for state in STATES:
            for run in self.asked if state != "finished" else ():
                if seeds := [seed for seed in self.seeds if self.states[run.row, seed] == state]:
                    yield state, run.title, seeds


def gather(file: Path, world: str | None, root: Path) -> Gathered:
    """Reads every run of the recipe's rows under `root`."""
    planned = load_rows(file, world=world)
    plain = load_rows(file) if world is not None else planned
    folders = {(run.row, seed): folder for run in planned for seed, folder in _folders(root, run)}
    seeds = sorted({seed for _, seed in folders})
    started = {row for row, _ in folders}
    states = {
        (run.row, seed): _state(folders.get((run.row, seed)))
        for run in planned
        for seed in seeds
        if run.row in started
    }
    scored = [read(folders[place]) for place, state in states.items() if state == "finished"]
    first = {run.row: runs.RunFolder(run.path).run() for run in reversed(scored)}
    changed = [run.title for run in planned if run.row in first and _said(first[run.row]) != _said(run)]
    teacher = _teacher(first.values(), root)
    return Gathered(file, planned, plain, states, tuple(scored), tuple(changed), teacher)


def _folders(root: Path, run: Run) -> list[tuple[int, runs.RunFolder]]:
    row = runs.folder(root, run).path.parent
    found = [(path.name.removeprefix("seed"), path) for path in row.glob("seed*")]
    return [(int(seed), runs.RunFolder(path)) for seed, path in found if seed.isdecimal()]


def _state(folder: runs.RunFolder | None) -> State:
    status = folder.info().get("status") if folder is not None else None
    if folder is None or status is None:
        return "missing"
    if status == "finished":
        return "finished" if runs.read_json(folder.results) else "unscored"
    return "failed" if status == "failed" else "unfinished"


def _teacher(first: Iterable[Run], root: Path) -> dict[str, Any] | None:
    """The stored scores of the rows' one teacher and of the baselines."""
    keys = {run.teacher_key for run in first if run.config.teacher is not None}
    return runs.scores(runs.evaluation(root, keys.pop())) if len(keys) == 1 else None


def _said(run: Run) -> Recipe:
    """What a run does, whatever its seed."""
    return run.config.model_copy(update={"seed": 0, "rows": {}, "controls": ()})
