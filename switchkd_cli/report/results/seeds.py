"""Runs of one row over seeds, taken together, and which of two rows' runs are paired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.report.results.finished_run import Scored
from switchkd_cli.report.tables.footnotes import counted
from switchkd_cli.runs.run_folder import shown

SFT = "sft"  # the row that others are measured against when nobody names one


@dataclass(frozen=True)
class Group:
    """A row's finished runs, the seeds rising."""

    name: str
    """Title and seeds."""
    title: str
    """Without the seeds, where that is enough to tell it from the others."""
    runs: tuple[Scored, ...]

    @property
    def row(self) -> str:
        return self.runs[0].row


def grouped(runs: Sequence[Scored]) -> tuple[Group, ...]:
    """The runs by row folder, in the order given; runs of one row only stand each for itself."""
    runs = list({run.path: run for run in runs}.values())
    rows: dict[object, list[Scored]] = {}
    for run in runs:
        rows.setdefault(run.home, []).append(run)
    if len(rows) == 1:
        rows = {run.path: [run] for run in runs}
    groups = [sorted(row, key=lambda run: run.seed) for row in rows.values()]
    names = _told_apart(groups, [_name(group) for group in groups])
    titles = [group[0].title for group in groups]
    count = Counter(titles)
    return tuple(
        Group(name, title if count[title] == 1 else name, tuple(group))
        for name, title, group in zip(names, titles, groups, strict=True)
    )


def reference(groups: Sequence[Group], controls: Sequence[str], against: str | None) -> Group:
    """What the others are measured against: the row `against`, else the first control, else the first.

    Raises UserError when no row is called `against`.
    """
    rows = {group.row: group for group in reversed(groups)}
    if against is not None:
        if against not in rows:
            raise UserError(
                f"--against: no run of this row here, got {against!r}{did_you_mean(against, rows)}"
            )
        return rows[against]
    return next((rows[name] for name in (*controls, SFT) if name in rows), groups[0])


def pairs(ours: Group, theirs: Group) -> list[tuple[Scored, Scored]]:
    """The runs of seeds that both have; two single runs are a pair whatever their seeds.

    A model without a seed, which is taken as it is, stands against every run.
    """
    runs = all(group.runs[0].is_run for group in (ours, theirs))
    if not runs or len(ours.runs) == len(theirs.runs) == 1:
        return [(one, other) for one in ours.runs for other in theirs.runs]
    other = {run.seed: run for run in theirs.runs}
    return [(run, other[run.seed]) for run in ours.runs if run.seed in other]


def _name(group: Sequence[Scored]) -> str:
    if len(group) == 1:
        return group[0].name
    return f"{group[0].title} ({counted([run.seed for run in group])})"


def _told_apart(groups: Sequence[Sequence[Scored]], names: list[str]) -> list[str]:
    """Namesakes get their recipe, and their folder if that is not enough."""
    for prefix in (lambda group: group[0].recipe, lambda group: shown(group[0].home)):
        count = Counter(names)
        names = [
            f"{prefix(group)}: {_name(group)}" if count[name] > 1 else name
            for group, name in zip(groups, names, strict=True)
        ]
    return names
