"""The rows of one recipe over seeds: means, intervals, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from switchkd_cli.recipe.run import Run
from switchkd_cli.report.document.cells import Cell, Number
from switchkd_cli.report.document.model import Document, Line, Points, Table
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.row_runs import SFT, RowRuns, seeds_in_words
from switchkd_cli.report.stats.intervals import over_seeds, paired_difference
from switchkd_cli.report.tables import footnotes
from switchkd_cli.report.tables.columns import Columns


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
    averages = {name: row.by_seed(columns.run_average) for name, row in rows.items()}
    missing = {name: [s for s in seeds if s not in {run.seed for run in row.runs}] for name, row in rows.items()}

    def minus(ours: str, theirs: str) -> Number | None:
        """One row's average minus another's, paired by seed."""
        found = None if ours == theirs else paired_difference(averages[ours], averages[theirs])
        return None if found is None else Number.minus(found)

    ours = next(iter(rows))
    title = rows[ours].title
    reference = next((name for name in (*controls, SFT) if name in rows and name != ours), None)
    heads = ["row", "seeds", "average"]
    heads += [f"minus {rows[reference].title}"] if reference else []
    heads += [f"{title} minus it"] if len(rows) > 1 else []
    gains = []
    verdicts: dict[str, list[str]] = {}
    for name, row in rows.items():
        average, count = over_seeds(list(averages[name].values())), len(row.runs)
        cells: list[Cell] = [f"{count} of {count + len(missing[name])}" if missing[name] else count]
        cells.append(None if average is None else Number.mean(average))
        cells += [minus(name, reference)] if reference else []
        gain = minus(ours, name)
        cells += [gain] if len(rows) > 1 else []
        seconds = [run.seconds for run in row.runs if run.seconds is not None]
        gains.append(Line(row.title, (*cells, round(fmean(seconds)) if seconds else None)))
        if gain is not None:
            verdicts.setdefault(_verdict(gain), []).append(row.title)
    scores = [Line(row.title, columns.cells(row.means())) for row in rows.values() if row.runs]
    notes = (
        *(f"{title} {verdict}: {'; '.join(titles)}" for verdict, titles in verdicts.items()),
        "±: half the 95 % t interval over seeds; differences are paired by seed",
        "not clear: the interval includes 0 (or there is none); not corrected for the number of rows",
        footnotes.MDE,
        *(f"{rows[name].title}: no finished run for {seeds_in_words(own)}" for name, own in missing.items() if own),
        *footnotes.of_scores(runs, columns, teacher),
        *footnotes.lengths(runs),
        f"train s: seconds of the last stage ({runs[0].stages[-1]['name']}), mean over seeds",
        *footnotes.files([runs[0].path.parents[1]]),
    )
    tables = (Table((*heads, "train s"), tuple(gains)), columns.table("mean over seeds", teacher, scores, runs))
    return Document(f"{footnotes.title(runs)}, {seeds_in_words(seeds)}", (*tables, Points(notes)))


def _verdict(gain: Number) -> str:
    if gain.interval is None:
        return "can't be told from (one seed in common)"
    words = {1: "is clearly better than", -1: "is clearly worse than"}
    return words.get(gain.side or 0, "does not clearly differ from")
