"""Single runs side by side: teacher, runs, gains, baselines, the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from switchkd_cli.report.results import seeds as groups
from switchkd_cli.report.results.finished_run import Scored, require_same_questions, scores
from switchkd_cli.report.stats import paired_items
from switchkd_cli.report.stats.baselines import BASELINES
from switchkd_cli.report.tables import differences, footnotes
from switchkd_cli.report.tables.cells import Line, Number, Report, Table
from switchkd_cli.report.tables.columns import Columns, minus
from switchkd_cli.report.tables.protocol import conditions
from switchkd_cli.runs.run_folder import shown

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
        footnotes.title(runs),
        (Table(("points", *columns.heads), tuple(lines)),),
        (
            *footnotes.of_scores(runs, columns, teacher),
            f"one seed ({ours.seed}), so chance is not ruled out: {ours.ablation} --seeds 5",
            *footnotes.lengths((*controls, ours)),
            *footnotes.files(run.path for run in runs),
        ),
    )


def comparison(
    runs: Sequence[Scored],
    teacher: Teacher | None,
    *,
    controls: Sequence[str] = (),
    against: str | None = None,
) -> Report:
    """Any finished runs, in the order given, beside the paper's numbers and each other.

    Runs of one row are taken together over their seeds. Each row is measured against one of them, see
    `groups.reference`. Raises UserError when they were not asked the same questions or not scored alike.
    """
    columns = _columns(runs, teacher)
    rows = groups.grouped(runs)
    base = groups.reference(rows, controls, against)
    everyone = [run for row in rows for run in row.runs]
    answers = paired_items.answered(everyone, columns.tasks if len(rows) > 1 else ())
    compared = [differences.against(row, base, columns, answers) for row in rows if row is not base]
    lines = [
        *of_teacher(columns, teacher),
        *(Line(row.name, columns.means([run.scores for run in row.runs])) for row in rows),
        *of_baselines(columns, teacher),
        *of_paper(columns, everyone),
    ]
    results = runs[0].results
    return Report(
        footnotes.title(runs),
        (
            Table(("points", *columns.heads), tuple(lines), "scores"),
            *_over_seeds(rows, columns),
            *differences.tables(compared),
            conditions(columns.tasks, results["world"], results["split"]),
        ),
        (
            *differences.notes(compared),
            *answers.notes,
            *footnotes.of_scores(runs, columns, teacher),
            *_one_seed(rows),
            *footnotes.only_scored(everyone),
            *footnotes.lengths(everyone),
            *footnotes.versions(everyone),
            *_files(rows),
        ),
    )


def _files(rows: Sequence[groups.Group]) -> Iterator[str]:
    for row in rows:
        if len(row.runs) == 1:
            yield from footnotes.files([row.runs[0].path])
        else:  # as a shell expands it
            seeds = ",".join(str(run.seed) for run in row.runs)
            yield f"files: {shown(row.runs[0].path.parent)}/seed{{{seeds}}}"


def _over_seeds(rows: Sequence[groups.Group], columns: Columns) -> Iterator[Table]:
    """Each row's average over its own seeds, where some row has several."""
    if all(len(row.runs) == 1 for row in rows):
        return
    unseeded = {row.name: not row.runs[0].is_run for row in rows}
    lines = []
    for name, estimate in differences.averages(rows, columns).items():
        if estimate is None:
            continue
        if unseeded[name]:
            lines.append(Line(name, (None, Number(estimate.mean), None)))
        else:
            deviation = None if estimate.deviation is None else Number(estimate.deviation)
            mean = Number(estimate.mean, estimate.interval, estimate.seeds)
            lines.append(Line(name, (estimate.seeds, mean, deviation)))
    yield Table(("average", "seeds", "mean, 95 % t", "sd"), tuple(lines), "the average over seeds")


def _one_seed(rows: Sequence[groups.Group]) -> Iterator[str]:
    alone = [row.title for row in rows if len(row.runs) == 1 and row.runs[0].is_run]
    if alone:
        yield f"one seed, so training's chance is not ruled out (switchkd ablate RECIPE --seeds 5): {'; '.join(alone)}"


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
    named = [(shown(run.path), run.results) for run in runs]
    named += [(name, teacher[name]) for name in ("teacher", *BASELINES) if teacher and name in teacher]
    require_same_questions(named)


def _columns(runs: Sequence[Scored], teacher: Teacher | None) -> Columns:
    same_questions(runs, teacher)
    return Columns.of(runs[0].scores, teacher)


def _gain(columns: Columns, ours: Scored, control: Scored) -> Line:
    name = f"gain: {ours.title} minus {control.title}"
    return Line(name, columns.cells(minus(ours.scores, control.scores), difference=True), "gain")
