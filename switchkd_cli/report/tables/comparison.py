"""Tables of runs next to each other: teacher, runs, gains, baselines, the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import stdev

from switchkd_cli.errors import shown
from switchkd_cli.report.document import Column, Document, Line, Number, Points, Table
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.paired_items import answer_units
from switchkd_cli.report.results.row_runs import RowRuns, group_by_row, reference
from switchkd_cli.report.tables import differences, footnotes
from switchkd_cli.report.tables.columns import Columns, protocol


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
    recipe, _, world = ours.recipe.partition("@")
    again = f"switchkd ablate {recipe}" + (f" --world {world}" if world else "")
    notes = (
        *footnotes.of_scores(runs, columns),
        f"one seed ({ours.seed}), so chance is not ruled out: {again} --seeds 5",
        *footnotes.lengths(last),
        *footnotes.files(run.path for run in runs),
    )
    return Document(footnotes.title(runs), (columns.table("points", rows, last), Points(notes)))


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
    compared = differences.compare([(row, base) for row in rows if row is not base], columns, answers)
    lines = [Line(row.name, columns.cells(row.means())) for row in rows]
    single = [row.title for row in rows if len(row.runs) == 1 and row.is_run]
    alone = "one seed, so training's chance is not ruled out (switchkd ablate RECIPE --seeds 5)"
    notes = (
        *differences.notes(compared),
        *answers.notes,
        *footnotes.of_scores(runs, columns),
        *([f"{alone}: {'; '.join(single)}"] if single else []),
        *footnotes.scored_models(every),
        *footnotes.lengths(every),
        *footnotes.versions(every),
        *_files(rows),
    )
    results = runs[0].results
    tables = (
        columns.table("points", lines, every, "scores"),
        *_over_seeds(rows, columns),
        *differences.tables(compared),
        protocol(columns.tasks, results["world"], results["split"]),
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
    averages = {row: list(row.by_seed(columns.run_average).values()) for row in rows}
    if any(len(row.runs) > 1 for row in rows):
        shown: tuple[Column, ...] = (
            ("average", "name"),
            ("seeds", lambda row: len(averages[row]) if row.is_run else None),
            ("mean, 95 % t", lambda row: row.mean(columns.run_average) if row.is_run else Number(averages[row][0])),
            ("sd", lambda row: Number(stdev(averages[row])) if len(averages[row]) > 1 else None),
        )
        yield Table.of([row for row in rows if averages[row]], shown, title="the average over seeds")
