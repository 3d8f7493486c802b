"""The control of each row: SFT of the same student and parts, at equal steps and at equal compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from switchkd_cli.recipe.run import Run

ControlKind = Literal["steps", "compute"]
CONTROL_KINDS: Mapping[ControlKind, str] = {"steps": "SFT at equal steps", "compute": "SFT at equal compute"}


@dataclass(frozen=True)
class Controls:
    """Rows of one recipe; a control is found by what it does, not by its name."""

    rows: tuple[Run, ...]
    """In the recipe's order and with the models that it names; the first is the studied row."""

    def of(self, row: str, kind: ControlKind) -> str | None:
        """The control of `row`; None for the control itself, or where the recipe has none.

        That is the SFT of the row's own student, else of the studied row's.
        """
        own = next(run for run in self.rows if run.row == row)
        for like in (own, self.rows[0]):
            found = [run.row for run in self.rows if self._is_control(run, like, kind)]
            if found:
                return found[0] if found[0] != row else None
        return None

    def every(self, kind: ControlKind) -> list[Run]:
        """The controls of that kind, in the recipe's order."""
        names = {self.of(run.row, kind) for run in self.rows}
        return [run for run in self.rows if run.row in names]

    def _is_control(self, run: Run, like: Run, kind: ControlKind) -> bool:
        """Whether a run is SFT of `like`'s student that trains the same parts as the studied row."""
        if any(s.needs_teacher for s in run.config.stages) or run.config.student != like.config.student:
            return False
        last, studied = run.config.stages[-1], self.rows[0].config.stages[-1]
        length, equal = (float(stage.steps or stage.epochs or 0) for stage in (last, studied))
        return set(last.train) == set(studied.train) and (
            length == equal if kind == "steps" else length > equal
        )
