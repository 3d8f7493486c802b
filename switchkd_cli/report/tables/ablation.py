"""The rows of one recipe over seeds: means, intervals, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Sequence

from switchkd_cli.recipe.run import Run
from switchkd_cli.report.document import Column, Document, Line, Number, Points, Table
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.row_runs import SFT, RowRuns, seeds_in_words
from switchkd_cli.report.tables import footnotes
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.texts import MDE


def ablation(
    runs: Sequence[ScoredRun],
    teacher: TeacherScores | None,
    *,
    planned: Sequence[Run | ScoredRun] = (),
    controls: Sequence[str] = (),
) -> Document:
    """The rows in the planned order. The first is the studied one; all are measured against the first control.

    `planned` defaults to the finished runs. Raises UserError when the runs were not asked the same questions.
    """
    columns = Columns.of_runs(runs, teacher)
    planned = planned or runs
    seeds = sorted({run.seed for run in planned}, key=lambda seed: seed or 0)
    rows = {
        name: RowRuns(title, title, tuple({run.seed: run for run in runs if run.row == name}.values()))
        for name, title in {run.row: run.title for run in planned}.items()
    }
    ours = next(iter(rows.values()))
    reference = next((rows[name] for name in (*controls, SFT) if name in rows and rows[name] is not ours), None)
    missing = {row: [s for s in seeds if s not in {run.seed for run in row.runs}] for row in rows.values()}
    gains = {row: ours.minus(row, columns.run_average) for row in missing if row is not ours}
    verdicts: dict[str, list[str]] = {}
    for row, gain in gains.items():
        if gain is not None:
            verdicts.setdefault(_verdict(gain), []).append(row.title)

    def count(row: RowRuns) -> str | int:
        return f"{len(row.runs)} of {len(row.runs) + len(missing[row])}" if missing[row] else len(row.runs)

    def over_reference(row: RowRuns) -> Number | None:
        return None if row is reference else row.minus(reference, columns.run_average)

    def seconds(row: RowRuns) -> int | None:
        mean = row.mean(lambda run: run.seconds)
        return round(mean.value) if mean else None

    shown: list[Column] = [("row", "title"), ("seeds", count)]
    shown += [("average", lambda row: row.mean(columns.run_average))]
    shown += [(f"minus {reference.title}", over_reference)] if reference else []
    shown += [(f"{ours.title} minus it", gains.get)] if gains else []
    scores = [Line(row.title, columns.cells(row.means())) for row in missing if row.runs]
    notes = (
        *(f"{ours.title} {verdict}: {'; '.join(titles)}" for verdict, titles in verdicts.items()),
        "±: half the 95 % t interval over seeds; differences are paired by seed",
        "not clear: the interval includes 0 (or there is none); not corrected for the number of rows",
        MDE,
        *(f"{row.title}: no finished run for {seeds_in_words(own)}" for row, own in missing.items() if own),
        *footnotes.of_scores(runs, columns),
        *footnotes.lengths(runs),
        f"train s: seconds of the last stage ({runs[0].stages[-1]['name']}), mean over seeds",
        *footnotes.files([runs[0].path.parents[1]]),
    )
    tables = (Table.of(missing, [*shown, ("train s", seconds)]), columns.table("mean over seeds", scores, runs))
    return Document(f"{footnotes.title(runs)}, {seeds_in_words(seeds)}", (*tables, Points(notes)))


def _verdict(gain: Number) -> str:
    if gain.interval is None:
        return "can't be told from (one seed in common)"
    words = {1: "is clearly better than", -1: "is clearly worse than"}
    return words.get(gain.side or 0, "does not clearly differ from")
