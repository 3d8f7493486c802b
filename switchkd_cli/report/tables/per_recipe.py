"""One recipe's tables for a report: scores, the paper's beside them, what is gained, by kind of answer, at what cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from switchkd_cli.benchmarks import ANSWER_KINDS, BENCHMARKS
from switchkd_cli.report.results.controls import KINDS, Controls, Kind
from switchkd_cli.report.results.finished_run import Scored
from switchkd_cli.report.results.recipe_runs import Gathered
from switchkd_cli.report.results.seeds import Group
from switchkd_cli.report.stats.intervals import Estimate, over_seeds, paired
from switchkd_cli.report.stats.paired_items import Answered
from switchkd_cli.report.stats.significance import holm
from switchkd_cli.report.tables.cells import Cell, Line, Number, Probability, Table
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.tables.comparison import of_baselines, of_teacher
from switchkd_cli.report.tables.differences import ALPHA, Against, Difference, against

AVG = "Avg"  # its name among the differences and the columns' heads
FIDELITY = ("agreement, %", "KL, nats")
Score = Callable[[Scored], float | None]
"""One figure of a run."""


def scores(recipe: Gathered, columns: Columns) -> Table:
    """A line for each row, the mean over its seeds; the teacher above, the baselines below."""
    lines = []
    for line in of_teacher(columns, recipe.teacher):
        lines.append(replace(line, cells=(None, *line.cells)))
    for run in recipe.asked:
        group = recipe.group(run.row)
        count, asked = len(group.runs) if group else 0, len(recipe.seeds)
        each = (
            [_mean(group, score) for score in _columns(columns)]
            if group
            else [None] * (len(columns.tasks) + 1)
        )
        seeds = count if count == asked else f"{count} of {asked}"
        lines.append(
            Line(run.title, (seeds, *(_discredited(cell, columns, i) for i, cell in enumerate(each))))
        )
    for line in of_baselines(columns, recipe.teacher):
        lines.append(replace(line, cells=(None, *line.cells)))
    return Table(("row", "seeds", *columns.heads), tuple(lines))


def printed(recipe: Gathered, columns: Columns) -> Table | None:
    """The paper's numbers of the rows that have some, its averages as printed."""
    lines = [Line(run.title, columns.printed(run.paper)) for run in recipe.asked if run.paper]
    return Table(("as printed", *columns.heads), tuple(lines)) if lines else None


def compared(recipe: Gathered, columns: Columns, answers: Answered, kind: Kind) -> list[Against]:
    """Every row minus its control of that kind, where both have a run of one seed."""
    controls = Controls(recipe.plain)
    found = []
    for group in recipe.rows:
        name = controls.of(group.row, kind)
        control = recipe.group(name) if name else None
        if control is not None:
            found.append(against(group, control, columns, answers))
    return [row for row in found if row.seeds]


def gains(found: Sequence[Against], columns: Columns, kind: Kind) -> tuple[Table, Table]:
    """What each row adds to its control: on average with all tests, then benchmark by benchmark."""
    corrected = iter(holm([d.p for row in found for d in row.found if d.p is not None]))
    tested = {id(d): None if d.p is None else next(corrected) for row in found for d in row.found}
    several = len({row.theirs.row for row in found}) > 1
    beside = any(d.paper is not None for row in found for d in row.found if d.name == AVG)
    whole, each = [], []
    for row in found:
        control: list[Cell] = [row.theirs.title] if several else []
        own = {d.name: _gain(d, tested[id(d)]) for d in row.found}
        each.append(Line(row.ours.title, (*control, *(own.get(head) for head in columns.heads))))
        for d in row.found:
            if d.name == AVG:
                tests = [d.items, _probability(d.p), _probability(tested[id(d)])]
                paper = [None if d.paper is None else Number(d.paper, difference=True)] if beside else []
                whole.append(Line(row.ours.title, (*control, len(row.seeds), own[AVG], *tests, *paper)))
    name = f"minus {_control(found, kind)}"
    minus = ("minus",) if several else ()
    heads = (
        f"average {name}",
        *minus,
        "seeds",
        "difference",
        "95 % items",
        "p",
        "p, Holm",
        *["paper"] * beside,
    )
    return Table(heads, tuple(whole)), Table((name, *minus, *columns.heads), tuple(each))


def verdict(found: Sequence[Against]) -> Iterator[str]:
    """In words what the seeds say of the averages."""
    said: dict[str, list[str]] = {"Clearly above on average": [], "Clearly below": [], "Not clear": []}
    above, below, unclear = said.values()
    for row in found:
        for d in row.found:
            if d.name == AVG:
                gain = _gain(d, None)
                told = f"{row.ours.title} ({gain.mde})" if gain.mde else row.ours.title
                (unclear if not gain.clear else above if gain.value > 0 else below).append(told)
    for words, titles in said.items():
        yield f"{words}: {'; '.join(titles) or 'none'}."


def _probability(p: float | None) -> Probability | None:
    return None if p is None else Probability(p)


def _control(found: Sequence[Against], kind: Kind) -> str:
    titles = {row.theirs.title for row in found}
    return titles.pop() if len(titles) == 1 else KINDS[kind]


def _gain(d: Difference, corrected: float | None) -> Number:
    seeds = d.seeds or Estimate(d.ours - d.theirs, None, 1)
    beyond = corrected is not None and corrected < ALPHA
    return Number.minus(seeds, counted=d.counted, beyond=beyond)


def kinds(recipe: Gathered, columns: Columns) -> Table | None:
    """Means over the benchmarks that ask for one kind of answer, and what each row adds to its controls there."""
    asked = by_kind(columns)
    if len(asked) < 2:
        return None
    controls = Controls(recipe.plain)
    measured = [kind for kind in KINDS if any(recipe.group(row) for row in controls.every(kind))]
    heads = [head for name in asked for head in (name, *(f"minus {KINDS[kind]}" for kind in measured))]
    lines = []
    for group in recipe.rows:
        cells: list[Cell] = []
        for tasks in asked.values():
            score = _over(tasks)
            cells.append(_mean(group, score))
            for kind in measured:
                cells.append(_minus(recipe, group, controls.of(group.row, kind), score))
        lines.append(Line(group.title, tuple(cells)))
    return Table(("row", *heads), tuple(lines))


def by_kind(columns: Columns) -> dict[str, list[str]]:
    """The benchmarks that count, by the kind of answer that they ask for."""
    counted = [task for task in columns.tasks if task not in columns.not_beaten]
    found = {name: [t for t in counted if BENCHMARKS[t].asks == kind] for kind, name in ANSWER_KINDS.items()}
    return {name: tasks for name, tasks in found.items() if tasks}


def costs(recipe: Gathered, columns: Columns) -> Table:
    """Gain, fidelity and cost beside one another."""
    controls = Controls(recipe.plain)
    lines = []
    for group in recipe.rows:
        lines.append(
            Line(
                group.title,
                (
                    _mean(group, lambda run: columns.average(run.scores)),
                    _minus(
                        recipe,
                        group,
                        controls.of(group.row, "steps"),
                        lambda run: columns.average(run.scores),
                    ),
                    _figure(group, lambda run: run.fidelity and 100 * run.fidelity["agreement"], ".1f"),
                    _figure(group, lambda run: run.fidelity and run.fidelity["kl"], ".2f"),
                    _figure(group, lambda run: run.seconds, ",.0f"),
                    _figure(group, lambda run: run.gib, ".2f"),
                ),
            )
        )
    heads = ("row", "average", f"minus {KINDS['steps']}", *FIDELITY, "last stage, s", "peak memory, GiB")
    table = Table(heads, tuple(lines))
    return table if any(run.fidelity for run in recipe.runs) else _without(table, FIDELITY)


def _without(table: Table, heads: Sequence[str]) -> Table:
    kept = [place for place, head in enumerate(table.columns[1:]) if head not in heads]
    lines = [replace(line, cells=tuple(line.cells[place] for place in kept)) for line in table.lines]
    return Table((table.columns[0], *(table.columns[1 + place] for place in kept)), tuple(lines), table.title)


def _columns(columns: Columns) -> Iterator[Score]:
    for task in columns.tasks:
        yield lambda run, task=task: run.scores[task]
    yield lambda run: columns.average(run.scores)


def _over(tasks: Sequence[str]) -> Score:
    return lambda run: fmean(run.scores[task] for task in tasks)


def _values(group: Group, score: Score) -> dict[int, float]:
    found = {run.seed: score(run) for run in group.runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean(group: Group, score: Score) -> Number | None:
    found = over_seeds(list(_values(group, score).values()))
    if found is None:
        return None
    return Number(found.mean, found.interval, found.seeds if found.interval is not None else None)


def _minus(recipe: Gathered, group: Group, control: str | None, score: Score) -> Number | None:
    other = recipe.group(control) if control else None
    found = other and paired(_values(group, score), _values(other, score))
    return Number.minus(found) if found else None


def _discredited(cell: Number | None, columns: Columns, place: int) -> Number | None:
    """The same, marked where its benchmark does not count."""
    out = place < len(columns.tasks) and columns.tasks[place] in columns.not_beaten
    return replace(cell, counted=False) if cell is not None and out else cell


def _figure(group: Group, score: Score, form: str) -> str | None:
    values: Mapping[int, float] = _values(group, score)
    return format(fmean(values.values()), form) if values else None
