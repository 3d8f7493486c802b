"""What each row is measured by: SFT of the same student and parts, at equal steps and at equal compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Stage

Kind = Literal["steps", "compute"]
KINDS: Mapping[Kind, str] = {"steps": "SFT at equal steps", "compute": "SFT at equal compute"}


@dataclass(frozen=True)
class Controls:
    """Rows of one recipe; a control is found by what it does, not by its name."""

    rows: tuple[Run, ...]
    """In the recipe's order and with the models that it names; the first is the one that is studied."""

    def of(self, row: str, kind: Kind) -> str | None:
        """The row that `row` is measured by; None for the control itself, or where the recipe has none.

        That is the SFT of the row's own student, else of the studied row's.
        """
        own = next(run for run in self.rows if run.row == row)
        for like in (own, self.rows[0]):
            found = [run for run in self.rows if _is_control(run, like, self.rows[0], kind)]
            if found:
                return found[0].row if found[0].row != row else None
        return None

    def every(self, kind: Kind) -> list[str]:
        """The controls of that kind, in the recipe's order."""
        found = {self.of(run.row, kind) for run in self.rows}
        return [run.row for run in self.rows if run.row in found]


def _is_control(run: Run, like: Run, studied: Run, kind: Kind) -> bool:
    """Whether a run is SFT of `like`'s student that trains the parts which the studied row trains."""
    if any(stage.needs_teacher for stage in run.config.stages) or run.config.student != like.config.student:
        return False
    ours, theirs = run.config.stages[-1], studied.config.stages[-1]
    if set(ours.train) != set(theirs.train):
        return False
    return _length(ours) == _length(theirs) if kind == "steps" else _length(ours) > _length(theirs)


def _length(stage: Stage) -> float:
    return float(stage.steps or stage.epochs or 0)
