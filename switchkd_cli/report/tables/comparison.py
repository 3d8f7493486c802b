"""The tables that end `distill`, `ablate` and `compare`: teacher, runs, gains, baselines, the paper's numbers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import stdev

from switchkd_cli.errors import shown
from switchkd_cli.recipe.run import Run
from switchkd_cli.report.document import Cell, Column, Document, Line, Number, Points, Table
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.paired_items import answer_units
from switchkd_cli.report.results.row_runs import SFT, RowRuns, group_by_row, reference, seeds_in_words
from switchkd_cli.report.tables import differences, footnotes
from switchkd_cli.report.tables.columns import Columns, protocol
from switchkd_cli.report.texts import MDE, NOTES, TEXTS
from switchkd_cli.runs.run_folder import RunFolder


def distillation(runs: Sequence[ScoredRun], teacher: TeacherScores) -> Document:
    """The first run and its gain over each of the others (its controls).

    Raises UserError when they were not asked the same questions.
    """
    (ours, *controls), columns = runs, Columns.of_runs(runs, teacher)
    last = (*controls, ours)
    rows = [Line(run.name, columns.cells(run.scores)) for run in last]
    for control in controls:
        gain = columns.cells(ours.scores, control.scores)
        rows.append(Line(f"gain: {ours.title} minus {control.title}", gain, "gain"))
    recipe, _, world = ours.recipe.partition("@")
    again = f"switchkd ablate {recipe}" + (f" --world {world}" if world else "")
    once = f"one seed ({ours.seed}), so chance is not ruled out: {again} --seeds 5"
    notes = [*footnotes.of_scores(runs, columns), once, *footnotes.lengths(last)]
    notes += [f"files: {shown(run.path)}" for run in runs]
    return Document(footnotes.title(runs), (columns.table("points", rows, last), Points(tuple(notes))))


def ablation(
    runs: Sequence[ScoredRun], teacher: TeacherScores, *, planned: Sequence[Run], controls: Sequence[str]
) -> Document:
    """The rows in the planned order. The first is the studied one; all are measured against the first control.

    Raises UserError when the runs were not asked the same questions.
    """
    columns = Columns.of_runs(runs, teacher)
    seeds = sorted({run.seed for run in planned}, key=lambda seed: seed or 0)
    rows = {
        name: RowRuns(title, title, tuple({run.seed: run for run in runs if run.row == name}.values()))
        for name, title in {run.row: run.title for run in planned}.items()
    }
    ours = next(iter(rows.values()))
    reference = next((rows[name] for name in (*controls, SFT) if name in rows and rows[name] is not ours), None)
    wanted = grouped((rows[run.row], run.seed) for run in planned)  # a row may have a first seed of its own
    missing = {row: [s for s in wanted[row] if s not in {run.seed for run in row.runs}] for row in rows.values()}
    average = columns.run_average
    gains = {row: ours.minus(row, average) for row in missing if row is not ours}
    verdicts = grouped((_verdict(gain), row.title) for row, gain in gains.items() if gain)

    gained: list[Column] = [("row", "title"), ("seeds", lambda row: row.count(len(wanted[row])))]
    gained.append(("average", lambda row: row.mean(average)))
    if reference:
        over_it = {row: row.minus(reference, average) for row in missing if row is not reference}
        gained.append((f"minus {reference.title}", over_it.get))
    if gains:
        gained.append((f"{ours.title} minus it", gains.get))
    gained.append(("train s", lambda row: (mean := row.mean(lambda run: run.seconds)) and round(mean.value)))
    scores = [Line(row.title, columns.cells(row.means())) for row in missing if row.runs]
    notes = [f"{ours.title} {verdict}: {'; '.join(titles)}" for verdict, titles in verdicts.items()]
    notes += [*TEXTS["over seeds"], MDE]
    notes += [f"{row.title}: no finished run for {seeds_in_words(own)}" for row, own in missing.items() if own]
    notes += [*footnotes.of_scores(runs, columns), *footnotes.lengths(runs)]
    notes.append(f"train s: seconds of the last stage ({runs[0].stages[-1]['name']}), mean over seeds")
    notes.append(f"files: {shown(runs[0].path.parents[1])}")
    tables = (Table.of(missing, gained), columns.table("mean over seeds", scores, runs))
    return Document(f"{footnotes.title(runs)}, {seeds_in_words(seeds)}", (*tables, Points(tuple(notes))))


def _verdict(gain: Number) -> str:
    if gain.interval is None:
        return "can't be told from (one seed in common)"
    words = {1: "is clearly better than", -1: "is clearly worse than"}
    return words.get(gain.side or 0, "does not clearly differ from")


def comparison(
    runs: Sequence[ScoredRun], teacher: TeacherScores, *, controls: Sequence[str] = (), against: str | None = None
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
    notes = [*differences.notes(compared), *answers.notes, *footnotes.of_scores(every, columns)]
    notes += [f"{alone}: {'; '.join(single)}"] if single else []
    notes += [*footnotes.scored_models(every), *footnotes.lengths(every), *footnotes.versions(every)]
    notes += map(_files, rows)
    results = runs[0].results
    measured = protocol(columns.tasks, results["world"], results["split"], results["scores"])
    tables = [columns.table("points", lines, every, "scores"), *_over_seeds(rows, columns), *_low_bits(every, columns)]
    tables += [*differences.tables(compared), measured]
    return Document(footnotes.title(runs), (*tables, Points(tuple(notes))))


def _files(row: RowRuns) -> str:
    """The folders of a row's runs, as a shell expands it."""
    seeds = ",".join(str(run.seed) for run in row.runs)
    first = row.runs[0].path
    return f"files: {shown(first)}" if len(row.runs) == 1 else f"files: {shown(first.parent)}/seed{{{seeds}}}"


def _over_seeds(rows: Sequence[RowRuns], columns: Columns) -> Iterator[Table]:
    """Each row's average over its own seeds, where some row has several."""
    averages = {row: list(row.by_seed(columns.run_average).values()) for row in rows}
    if columns.counted_tasks and any(len(row.runs) > 1 for row in rows):
        columns_shown: tuple[Column, ...] = (
            ("average", "name"),
            ("seeds", lambda row: len(averages[row]) if row.is_run else None),
            ("mean, 95 % t", lambda row: row.mean(columns.run_average) if row.is_run else Number(averages[row][0])),
            ("sd", lambda row: Number(stdev(averages[row])) if len(averages[row]) > 1 else None),
        )
        yield Table.of([row for row in rows if averages[row]], columns_shown, title="the average over seeds")


def _low_bits(runs: Sequence[ScoredRun], columns: Columns) -> Iterator[Table]:
    """The size of each model with few bits, and its average minus that of the same model in full, where this is a row too."""
    low = [run for run in runs if "bits" in run.results]
    others = [run for run in runs if run not in low]
    full = {RunFolder(run.path).model if run.is_run else Path(run.results["model"]): run for run in others}

    def minus_full(run: ScoredRun) -> Cell:
        other = full.get(Path(run.results["model"]))
        return columns.cells(run.scores, other.scores)[-1] if other else None

    sizes: tuple[Column, ...] = (
        ("few bits", "name"),
        ("MB", lambda run: f"{run.results['bytes'] / 1e6:.1f}"),
        ("full MB", lambda run: f"{run.results['full_bytes'] / 1e6:.1f}"),
        ("average minus full", minus_full),
    )
    if low:
        yield Table.of(low, sizes, title=NOTES["few bits"])
