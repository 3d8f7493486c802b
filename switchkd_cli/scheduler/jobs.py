"""What planned runs come down to: each different run once, whatever rows and recipes ask for it, and their teachers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from switchkd_cli.recipe.run import Run


@dataclass(frozen=True)
class Entry:
    """One thing that a worker does."""

    name: str
    """What it is called on the screen."""
    runs: tuple[Run, ...]
    """A run under its several names: the first is trained and scored, the others take it over."""
    scoring: bool = False
    """Instead: the first run's teacher and the baselines are scored."""

    @property
    def run(self) -> Run:
        return self.runs[0]

    @property
    def cost(self) -> str:
        """What entries that take equally long have in common."""
        return "scoring" if self.scoring else f"{self.run.recipe}/{self.run.row}"


def different(planned: Sequence[Run]) -> list[Entry]:
    """The planned runs, those with the same key as one, in the order of the first of them."""
    found: dict[str, list[Run]] = {}
    for run in planned:
        found.setdefault(run.key, []).append(run)
    several = len({run.recipe for run in planned}) > 1
    return [Entry(_prefix(same[0]) * several + same[0].name, tuple(same)) for same in found.values()]


def scorings(taught: Iterable[Run]) -> list[Entry]:
    """The scoring of each different teacher; a recipe that scores nothing has none."""
    teachers: dict[str, Run] = {}
    for run in taught:
        if run.config.evaluation is not None:
            teachers.setdefault(run.teacher_key, run)
    title = "the teacher and the baselines"
    titles = [_prefix(run) * (len(teachers) > 1) + title for run in teachers.values()]
    return [Entry(title, (run,), scoring=True) for title, run in zip(titles, teachers.values(), strict=True)]


def _prefix(run: Run) -> str:
    """The recipe, where there may be several; in what world they run, they have in common."""
    return f"{run.recipe.partition('@')[0]}: "
