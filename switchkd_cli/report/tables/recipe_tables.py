"""One recipe's tables for a report: scores, the paper's numbers, gains over the controls, kinds of answer, cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from switchkd_cli.benchmarks import ANSWER_KINDS, BENCHMARKS
from switchkd_cli.report.document.cells import Cell, Number
from switchkd_cli.report.document.model import AVERAGE_HEAD, Line, Table
from switchkd_cli.report.results.finished_run import ScoredRun
from switchkd_cli.report.results.recipe_runs import CONTROL_KINDS, ControlKind, RecipeRuns
from switchkd_cli.report.results.row_runs import RowRuns, Score
from switchkd_cli.report.stats.intervals import over_seeds, paired_difference
from switchkd_cli.report.stats.paired_items import AnswerUnits
from switchkd_cli.report.stats.significance import ALPHA
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.tables.differences import RowDifference, row_difference, with_correction
from switchkd_cli.report.tables.footnotes import MDE


def scores(recipe: RecipeRuns, columns: Columns) -> Table:
    """A line for each row, the mean over its seeds; the teacher above, the baselines below."""
    teacher, baselines = columns.of_teacher(recipe.teacher), columns.of_baselines(recipe.teacher)
    lines = [replace(line, cells=(None, *line.cells)) for line in teacher]
    for run in recipe.started_rows:
        row, planned = recipe.row(run.row), len(recipe.seeds)
        count = len(row.runs) if row else 0
        cells: list[Cell] = [count if count == planned else f"{count} of {planned}"]
        for name, figure in columns.figures.items():
            cell = _mean(row, figure) if row else None
            cells.append(cell and replace(cell, counted=name not in columns.not_beaten))
        lines.append(Line(run.title, tuple(cells)))
    lines += [replace(line, cells=(None, *line.cells)) for line in baselines]
    caption = "0 to 100, the mean over seeds ± half of its 95 % t interval."
    if recipe.teacher:
        caption += " Majority: the most frequent right answer of each kind; blind: the teacher shown a grey image."
    if columns.not_beaten:
        caption += " In grey and parentheses: left out of the average."
    return Table(("row", "seeds", *columns.heads), tuple(lines), caption=caption)


def paper_numbers(recipe: RecipeRuns, columns: Columns) -> Iterator[Table]:
    """The paper's numbers of the rows that have some, its averages as printed; no table where no row has."""
    if lines := [Line(run.title, columns.printed(run.paper)) for run in recipe.started_rows if run.paper]:
        caption = "Printed in the paper, for its own models, data and benchmarks: single runs, no intervals."
        yield Table(("as printed", *columns.heads), tuple(lines), caption=caption, source="paper")


def compare_with_controls(
    recipe: RecipeRuns, columns: Columns, answers: AnswerUnits, kind: ControlKind
) -> list[RowDifference]:
    """Every row minus its control of that kind, where both have a run of one seed."""
    pairs = [(row, recipe.control(row, kind)) for row in recipe.rows]
    found = [row_difference(row, control, columns, answers) for row, control in pairs if control]
    return with_correction([row for row in found if row.seeds])


def gains(rows: Sequence[RowDifference], columns: Columns, kind: ControlKind, studied: str) -> tuple[Table, Table]:
    """The gain of each row over its control: on average with all tests, then benchmark by benchmark."""
    titles = {row.theirs.title for row in rows}
    several = len(titles) > 1
    in_paper = any(d.paper is not None for row in rows for d in row.each if d.head == AVERAGE_HEAD)
    average, each = [], []
    for row in rows:
        control: list[Cell] = [row.theirs.title] if several else []
        by_head = {d.head: d.over_seeds for d in row.each}
        each.append(Line(row.ours.title, (*control, *(by_head.get(head) for head in columns.heads))))
        for d in row.each:
            if d.head == AVERAGE_HEAD:
                cells = [*control, len(row.seeds), d.over_seeds, *d.tests, *([d.printed] if in_paper else [])]
                average.append(Line(row.ours.title, tuple(cells)))
    name = f"minus {CONTROL_KINDS[kind] if several else titles.pop()}"
    minus = ["minus"] if several else []
    heads = [f"average {name}", *minus, "seeds", "difference", "95 % items", "p", "p, Holm"]
    heads += ["paper"] if in_paper else []
    tests = sum(d.p is not None for row in rows for d in row.each)
    equal = f" Equal to the compute of {studied}." if kind == "compute" else ""
    tested = (
        f"Difference: over paired seeds ± half of the 95 % t interval. 95 % items, p: over the same items, the runs "
        f"taken as they are; Holm: corrected for the {tests} tests of both tables.{equal}"
    )
    marked = (
        "Bold: the interval over seeds excludes 0. Asterisk: beyond chance over the items after Holm's correction "
        f"(p < {ALPHA:g}). {MDE}."
    )
    return (
        Table(tuple(heads), tuple(average), caption=tested, plotted="difference"),
        Table((name, *minus, *columns.heads), tuple(each), caption=marked),
    )


def verdict(rows: Sequence[RowDifference]) -> str:
    """What the seeds say of the averages, in words."""
    titles: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for row in rows:
        for gain in (d.over_seeds for d in row.each if d.head == AVERAGE_HEAD):
            titles[gain.side or 0].append(f"{row.ours.title} ({gain.mde})" if gain.mde else row.ours.title)
    words = {"Clearly above on average": 1, "Clearly below": -1, "Not clear": 0}
    return " ".join(f"{said}: {'; '.join(titles[side]) or 'none'}." for said, side in words.items())


def answer_kinds(recipe: RecipeRuns, columns: Columns) -> Table | None:
    """Means over the benchmarks of one kind of answer, and what each row adds to its controls there."""
    tasks_by_kind = {
        name: [task for task in columns.counted_tasks if BENCHMARKS[task].asks == kind]
        for kind, name in ANSWER_KINDS.items()
    }
    tasks_by_kind = {name: tasks for name, tasks in tasks_by_kind.items() if tasks}
    if len(tasks_by_kind) < 2:
        return None
    kinds = [kind for kind in CONTROL_KINDS if any(recipe.row(run.row) for run in recipe.controls.every(kind))]
    heads = [head for name in tasks_by_kind for head in (name, *(f"minus {CONTROL_KINDS[kind]}" for kind in kinds))]
    lines = []
    for row in recipe.rows:
        cells: list[Cell] = []
        for tasks in tasks_by_kind.values():

            def score(run: ScoredRun, tasks: Sequence[str] = tasks) -> float:
                return fmean(run.scores[task] for task in tasks)

            cells.append(_mean(row, score))
            cells += [_minus(row, recipe.control(row, kind), score) for kind in kinds]
        lines.append(Line(row.title, tuple(cells)))
    groups = [
        f"{name[0].upper()}{name[1:]}: {', '.join(BENCHMARKS[task].column for task in tasks)}"
        for name, tasks in tasks_by_kind.items()
    ]
    caption = f"Means over benchmarks and seeds. {'. '.join(groups)}."
    return Table(("row", *heads), tuple(lines), caption=caption)


def costs(recipe: RecipeRuns, columns: Columns) -> Table:
    """Gain, fidelity and cost next to one another."""
    figures: dict[str, tuple[Score, str]] = {
        "agreement, %": (lambda run: 100 * run.fidelity["agreement"] if run.fidelity else None, ".1f"),
        "KL, nats": (lambda run: run.fidelity["kl"] if run.fidelity else None, ".2f"),
        "last stage, s": (lambda run: run.seconds, ",.0f"),
        "peak memory, GiB": (lambda run: run.gib, ".2f"),
    }
    caption = (
        "Agreement with the teacher's first choice and KL to it are taken at the same answer tokens of the "
        "training data: a student can gain without becoming faithful."
    )
    if not any(run.fidelity for run in recipe.runs):
        del figures["agreement, %"], figures["KL, nats"]
        caption = "Agreement with the teacher and KL to it were not measured in these runs."
    lines = []
    for row in recipe.rows:
        average = columns.run_average
        cells: list[Cell] = [_mean(row, average), _minus(row, recipe.control(row, "steps"), average)]
        for figure, form in figures.values():
            values = row.by_seed(figure).values()
            cells.append(format(fmean(values), form) if values else None)
        lines.append(Line(row.title, tuple(cells)))
    caption += " Seconds and memory depend on the machine and on what else ran on it. Means over seeds."
    heads = ("row", "average", f"minus {CONTROL_KINDS['steps']}", *figures)
    return Table(heads, tuple(lines), caption=caption)


def _mean(row: RowRuns, score: Score) -> Number | None:
    """The mean over seeds; a single seed's has no interval, and no question mark for one."""
    mean = over_seeds(list(row.by_seed(score).values()))
    if mean is None:
        return None
    return Number.mean(mean) if mean.interval is not None else Number(mean.mean)


def _minus(row: RowRuns, control: RowRuns | None, score: Score) -> Number | None:
    difference = None if control is None else paired_difference(row.by_seed(score), control.by_seed(score))
    return None if difference is None else Number.minus(difference)
