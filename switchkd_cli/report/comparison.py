"""Single runs side by side: teacher, runs, gains, baselines, the paper's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from switchkd_cli.report import notes
from switchkd_cli.report.baselines import BASELINES
from switchkd_cli.report.cells import Line, Report, Table
from switchkd_cli.report.columns import Columns, minus
from switchkd_cli.report.scored import Scored, require_same_questions, scores

Teacher = Mapping[str, Any]
"""What `baselines.judged` returns: results of "teacher", "majority" and "blind", and "not_beaten"."""


def distillation(runs: Sequence[Scored], teacher: Teacher | None) -> Report:
    """One run, the first, with what it gains over each of the others (its controls).

    Raises UserError when they were not asked the same questions.
    """
    (ours, *controls), columns = runs, _columns(runs, teacher)
    lines = [
        *of_teacher(columns, teacher),
        *(Line(run.name, columns.cells(run.scores)) for run in (*controls, ours)),
        *(_gain(columns, ours, control) for control in controls),
        *of_baselines(columns, teacher),
        *of_paper(columns, (*controls, ours)),
    ]
    return Report(
        notes.title(runs),
        (Table(("points", *columns.heads), tuple(lines)),),
        (
            *notes.of_scores(runs, columns, teacher),
            f"one seed ({ours.seed}), so chance is not ruled out: {ours.ablation} --seeds 5",
            *notes.lengths((*controls, ours)),
            *notes.files(run.path for run in runs),
        ),
    )


def comparison(runs: Sequence[Scored], teacher: Teacher | None) -> Report:
    """Any finished runs, in the order given, beside the paper's numbers.

    Raises UserError when they were not asked the same questions.
    """
    columns = _columns(runs, teacher)
    count = Counter(run.name for run in runs)
    names = [f"{run.recipe}: {run.name}" if count[run.name] > 1 else run.name for run in runs]
    lines = [
        *of_teacher(columns, teacher),
        *(Line(name, columns.cells(run.scores)) for name, run in zip(names, runs, strict=True)),
        *of_baselines(columns, teacher),
        *of_paper(columns, runs),
    ]
    return Report(
        notes.title(runs),
        (Table(("points", *columns.heads), tuple(lines)),),
        (
            *notes.of_scores(runs, columns, teacher),
            "each line is one run: intervals over seeds come from switchkd ablate RECIPE --seeds 5",
            *notes.lengths(runs),
            *notes.files(run.path for run in runs),
        ),
    )


def of_teacher(columns: Columns, teacher: Teacher | None) -> Iterator[Line]:
    if teacher and "teacher" in teacher:
        yield Line("teacher", columns.cells(scores(teacher["teacher"])), "teacher")


def of_baselines(columns: Columns, teacher: Teacher | None) -> Iterator[Line]:
    for name in BASELINES:
        if teacher and name in teacher:
            yield Line(name, columns.cells(scores(teacher[name])), "baseline")


def of_paper(columns: Columns, runs: Sequence[Scored]) -> Iterator[Line]:
    """The printed numbers, a line for each row of a recipe that has some."""
    printed = {(run.recipe, run.row): run for run in runs if run.paper}
    for run in printed.values():
        yield Line(run.title, columns.printed(run.paper), "paper")


def same_questions(runs: Sequence[Scored], teacher: Teacher | None) -> None:
    """Raises UserError when runs, teacher and baselines were not asked the same questions."""
    named = [(notes.shown(run.path), run.results) for run in runs]
    named += [(name, teacher[name]) for name in ("teacher", *BASELINES) if teacher and name in teacher]
    require_same_questions(named)


def _columns(runs: Sequence[Scored], teacher: Teacher | None) -> Columns:
    same_questions(runs, teacher)
    return Columns.of(runs[0].scores, teacher)


def _gain(columns: Columns, ours: Scored, control: Scored) -> Line:
    name = f"gain: {ours.title} minus {control.title}"
    return Line(name, columns.cells(minus(ours.scores, control.scores), difference=True), "gain")
