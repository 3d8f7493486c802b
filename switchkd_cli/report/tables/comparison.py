"""Tables of runs next to each other: teacher, runs, gains, baselines, the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from switchkd_cli.report.document.cells import Number
from switchkd_cli.report.document.model import Document, Line, Points, Table
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.row_runs import RowRuns, group_by_row, reference
from switchkd_cli.report.stats.intervals import over_seeds
from switchkd_cli.report.stats.paired_items import answer_units
from switchkd_cli.report.tables import differences, footnotes
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.tables.protocol import conditions
from switchkd_cli.runs.run_folder import shown


def distillation(runs: Sequence[ScoredRun], teacher: TeacherScores | None) -> Document:
    """The first run and its gain over each of the others (its controls).

    Raises UserError when they were not asked the same questions.
    """
    (ours, *controls), columns = runs, Columns.of_runs(runs, teacher)
    last = (*controls, ours)
    rows = [Line(run.name, columns.cells(run.scores)) for run in last]
    for control in controls:
        gain = {task: score - control.scores[task] for task, score in ours.scores.items()}
        name = f"gain: {ours.title} minus {control.title}"
        rows.append(Line(name, columns.cells(gain, difference=True), "gain"))
    notes = (
        *footnotes.of_scores(runs, columns, teacher),
        f"one seed ({ours.seed}), so chance is not ruled out: {ours.ablation} --seeds 5",
        *footnotes.lengths(last),
        *footnotes.files(run.path for run in runs),
    )
    table = columns.table("points", teacher, rows, last)
    return Document(footnotes.title(runs), (table, Points(notes)))


def comparison(
    runs: Sequence[ScoredRun],
    teacher: TeacherScores | None,
    *,
    controls: Sequence[str] = (),
    against: str | None = None,
) -> Document:
    """Any finished runs, in the given order, next to the paper's numbers and each other.

    Runs of one row are taken together over their seeds. Each row is measured against one of them, see
    `row_runs.reference`. Raises UserError when they were not asked the same questions or not scored alike.
    """
    columns = Columns.of_runs(runs, teacher)
    rows = group_by_row(runs)
    base = reference(rows, controls, against)
    every = [run for row in rows for run in row.runs]
    answers = answer_units(every, columns.tasks if len(rows) > 1 else ())
    compared = differences.with_correction(
        [differences.row_difference(row, base, columns, answers) for row in rows if row is not base]
    )
    lines = [Line(row.name, columns.cells(row.means())) for row in rows]
    single = [row.title for row in rows if len(row.runs) == 1 and row.is_run]
    alone = "one seed, so training's chance is not ruled out (switchkd ablate RECIPE --seeds 5)"
    notes = (
        *differences.notes(compared),
        *answers.notes,
        *footnotes.of_scores(runs, columns, teacher),
        *([f"{alone}: {'; '.join(single)}"] if single else []),
        *footnotes.scored_models(every),
        *footnotes.lengths(every),
        *footnotes.versions(every),
        *_files(rows),
    )
    results = runs[0].results
    tables = (
        columns.table("points", teacher, lines, every, "scores"),
        *_over_seeds(rows, columns),
        *differences.tables(compared),
        conditions(columns.tasks, results["world"], results["split"]),
    )
    return Document(footnotes.title(runs), (*tables, Points(notes)))


def _files(rows: Sequence[RowRuns]) -> Iterator[str]:
    for row in rows:
        if len(row.runs) == 1:
            yield from footnotes.files([row.runs[0].path])
        else:  # as a shell expands it
            seeds = ",".join(str(run.seed) for run in row.runs)
            yield f"files: {shown(row.runs[0].path.parent)}/seed{{{seeds}}}"


def _over_seeds(rows: Sequence[RowRuns], columns: Columns) -> Iterator[Table]:
    """Each row's average over its own seeds, where some row has several."""
    if all(len(row.runs) == 1 for row in rows):
        return
    lines = []
    for row in rows:
        if not (average := over_seeds(list(row.by_seed(columns.run_average).values()))):
            continue
        if row.is_run:
            deviation = None if average.deviation is None else Number(average.deviation)
            lines.append(Line(row.name, (average.count, Number.mean(average), deviation)))
        else:
            lines.append(Line(row.name, (None, Number(average.mean), None)))
    yield Table(("average", "seeds", "mean, 95 % t", "sd"), tuple(lines), "the average over seeds")
