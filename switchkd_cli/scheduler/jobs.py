"""Jobs: planned runs, de-duplicated by key, and the scoring of their teachers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from switchkd_cli.recipe.run import Run


@dataclass(frozen=True)
class Job:
    """The work of one worker process."""

    name: str
    """Its name on the screen."""
    runs: tuple[Run, ...]
    """One run under its several names: the first is trained and scored, the others reuse it."""
    scoring: bool = False
    """Score the first run's teacher and the baselines instead of training."""

    @property
    def run(self) -> Run:
        return self.runs[0]

    @property
    def cost_group(self) -> str:
        """Jobs of one group take about equally long."""
        return "scoring" if self.scoring else f"{self.run.recipe}/{self.run.row}"


def unique_jobs(planned: Sequence[Run]) -> list[Job]:
    """One job per key, in the order in which the keys first appear."""
    by_key: dict[str, list[Run]] = {}
    for run in planned:
        by_key.setdefault(run.key, []).append(run)
    several = len({run.recipe for run in planned}) > 1
    return [Job(_prefix(same[0]) * several + same[0].name, tuple(same)) for same in by_key.values()]


def scoring_jobs(runs: Iterable[Run]) -> list[Job]:
    """One job per different teacher of the runs; none for recipes without an evaluation."""
    teachers: dict[str, Run] = {}
    for run in runs:
        if run.config.evaluation is not None:
            teachers.setdefault(run.teacher_key, run)
    title = "the teacher and the baselines"
    return [Job(_prefix(run) * (len(teachers) > 1) + title, (run,), scoring=True) for run in teachers.values()]


def _prefix(run: Run) -> str:
    """The recipe's name without its world, in front of a job's name when there are several recipes."""
    return f"{run.recipe.partition('@')[0]}: "
