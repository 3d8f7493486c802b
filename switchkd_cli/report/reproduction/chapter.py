"""One recipe's chapter: its scores, the paper's numbers, gains over the controls, kinds of answer, cost, and notes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import methodcaller

from switchkd_cli.benchmarks import ANSWER_KINDS, BENCHMARKS
from switchkd_cli.errors import shown
from switchkd_cli.report.document import WARNING, Block, Column, Document, Line, Number, Points, Table, Text
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.results.paired_items import AnswerUnits
from switchkd_cli.report.results.recipe_runs import CONTROL_KINDS, STATES, ControlKind, RecipeRuns
from switchkd_cli.report.results.row_runs import RowRuns, Score, mean_of, seeds_in_words
from switchkd_cli.report.stats.baselines import BASELINES
from switchkd_cli.report.stats.significance import ALPHA
from switchkd_cli.report.tables import footnotes
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.tables.differences import PAPER, TESTS, RowDifference, compare
from switchkd_cli.report.texts import CAPTIONS, MDE, TEXTS

MEASURED: dict[str, list[Column]] = {
    group: [(head, methodcaller("figure", *how)) for head, how in columns.items()]
    for group, columns in TEXTS["measured"].items()
}
"""Groups of columns of means over seeds, without intervals."""


def chapter(recipe: RecipeRuns, figures: Sequence[Block]) -> Document:
    """All runs of a recipe. Runs that can't stand in one table are refused here, with the reasons."""
    head = tuple(_head(recipe))
    if not recipe.runs:
        refusal = "No run has scores: nothing to show."
        return Document(recipe.title, (*head, Text(refusal, "problem")), anchor=recipe.stem)
    if recipe.refusal:
        refusal = f"These runs can't be compared: {recipe.refusal}"
        return Document(recipe.title, (*head, Text(refusal, "problem")), anchor=recipe.stem)
    columns, answers = Columns.of_runs(recipe.runs, recipe.teacher), recipe.answers
    warned = [
        f"{runs[0].title}, {len(runs)} of {sum(r.title == runs[0].title for r in recipe.runs)} runs: {text}"
        for runs, text in footnotes.shared_warnings(recipe.runs)
    ]
    parts: dict[str, Sequence[Block]] = {
        "Scores": list(_scores(recipe, columns)),
        **{title: list(_gains(recipe, columns, answers, kind)) for kind, title in CONTROL_KINDS.items()},
        "By kind of answer": [_answer_kinds(recipe, columns)],
        "Gain, fidelity and cost": [_costs(recipe, columns)],
        "Eyes or reader": list(_eyes_or_reader(recipe)),
        "Figures": figures or [Text("None: the lines at the top of the report say why.")],
        "Diagnostics": [Points(tuple(warned)) if warned else Text("No run gave a warning.")],
        "Notes": [Points(tuple(_notes(recipe, columns, answers)))],
    }
    anchors = {title: "-".join([recipe.stem, *title.lower().replace(",", "").split()]) for title in parts}
    sections = (Document(title, tuple(blocks), anchor=anchors[title]) for title, blocks in parts.items())
    return Document(recipe.title, head, tuple(sections), anchor=recipe.stem)


def _head(recipe: RecipeRuns) -> Iterator[Block]:
    """How many runs finished, and which are not in the tables."""
    seeds = f" ({seeds_in_words(recipe.seeds)})" if recipe.seeds else ""
    finished = f"{len(recipe.runs)} of {len(recipe.states)} runs finished and scored{seeds}."
    not_started = f" Not run: {'; '.join(recipe.rows_not_started)}." if recipe.rows_not_started else ""
    yield Text(f"{len(recipe.started_rows)} rows, {finished}{not_started}")
    if missing := [f"{title}: {STATES[state]}, {seeds_in_words(own)}" for state, title, own in recipe.unfinished()]:
        count = len(recipe.states) - len(recipe.runs)
        yield Text(f"{'One run is' if count == 1 else f'{count} runs are'} missing: {'; '.join(missing)}.", "problem")


def _scores(recipe: RecipeRuns, columns: Columns) -> Iterator[Block]:
    """A line for each row, the mean over its seeds; the teacher above, the baselines below; the paper's apart."""

    def line(row: RowRuns) -> Line:
        means = {name: _mean(mean_of(tasks))(row) for name, tasks in columns.figures.items()}
        cells = [mean and replace(mean, **columns.shown(name)) for name, mean in means.items()]
        return Line(row.title, (row.count(len(recipe.seeds)), *cells))

    rows = [line(recipe.row(run.row)) for run in recipe.started_rows]
    said = {"scores": True, "baselines": recipe.teacher, "left out": not all(map(columns.counts, columns.names))}
    caption = " ".join(CAPTIONS[name] for name, true in said.items() if true)
    teacher, baselines = (columns.scored(*names, before=(None,)) for names in (("teacher",), BASELINES))
    yield Table(("row", "seeds", *columns.heads), (*teacher, *rows, *baselines), caption=caption)
    for note in (*footnotes.scales(recipe.runs, columns), *footnotes.answers(recipe.runs, columns.teacher)):
        yield Text(note, "problem" if note.startswith(WARNING) else "")
    if printed := [Line(run.title, columns.printed(run.paper)) for run in recipe.started_rows if run.paper]:
        yield Table(("as printed", *columns.heads), tuple(printed), caption=CAPTIONS["paper"], source="paper")


def _gains(recipe: RecipeRuns, columns: Columns, answers: AnswerUnits, kind: ControlKind) -> Iterator[Block]:
    """Every row minus its control of that kind, where both have a run of one seed.

    What the seeds say of the averages in words; the average with all tests; the gains benchmark by benchmark.
    """
    pairs = [(row, recipe.control(row, kind)) for row in recipe.rows]
    seeds = {row: {run.seed for run in row.runs} for row in recipe.rows}
    rows = compare([(row, by) for row, by in pairs if seeds[row] & {run.seed for run in by.runs}], columns, answers)
    if not rows:
        controls = [run.title for run in recipe.controls(kind)]
        lacking = f"no finished run of {' or '.join(controls)}" if controls else "the recipe has no such row"
        yield Text(f"No control to compare with: {lacking}.")
        return
    several = len({row.theirs.title for row in rows}) > 1
    name = f"minus {CONTROL_KINDS[kind] if several else rows[0].theirs.title}"
    minus: list[Column] = [("minus", "theirs.title")] if several else []
    with_average = [row for row in rows if row.average]
    tests = [*TESTS, PAPER] if any(row.average and row.average.printed for row in rows) else TESTS
    average: list[Column] = [(f"average {name}", "ours.title"), *minus, ("seeds", lambda row: len(row.seeds))]
    average += [("difference", "average.over_seeds"), *((head, f"average.{test}") for head, test in tests)]
    gains = [(head, methodcaller("over_seeds", head)) for head in columns.heads]
    tested = CAPTIONS["tests"].format(tests=sum(bool(d.p) for row in rows for d in row.each.values()))
    tested += f" Equal to the compute of {recipe.planned_rows[0].title}." if kind == "compute" else ""
    yield Text(_verdict(rows))
    yield Table.of(with_average, average, caption=tested, plotted="difference")
    yield Table.of(rows, [(name, "ours.title"), *minus, *gains], caption=CAPTIONS["gains"].format(alpha=ALPHA, mde=MDE))


def _verdict(rows: Sequence[RowDifference]) -> str:
    """What the seeds say of the averages, in words."""
    gains = [(row.ours.title, row.average.over_seeds) for row in rows if row.average]
    titles = grouped(
        (int(gain.side or 0), f"{title} ({gain.ends.mde})" if gain.ends.mde else title) for title, gain in gains
    )
    words = {"Clearly above on average": 1, "Clearly below": -1, "Not clear": 0}
    return " ".join(f"{said}: {'; '.join(titles.get(side, ())) or 'none'}." for said, side in words.items())


def _answer_kinds(recipe: RecipeRuns, columns: Columns) -> Block:
    """Means over the benchmarks of one kind of answer, and what each row adds to its controls there."""
    every = grouped((ANSWER_KINDS[BENCHMARKS[task].asks], task) for task in columns.counted_tasks)
    tasks_by_kind = {name: every[name] for name in ANSWER_KINDS.values() if name in every}
    if len(tasks_by_kind) < 2:
        return Text("The benchmarks that count ask for one kind of answer only.")
    kinds = [kind for kind in CONTROL_KINDS if any(recipe.row(run.row).runs for run in recipe.controls(kind))]
    shown: list[Column] = [("row", "title")]
    for name, tasks in tasks_by_kind.items():
        score = mean_of(tasks)
        shown += [(name, _mean(score)), *(_minus_control(recipe, kind, score) for kind in kinds)]
    heads = {name: ", ".join(BENCHMARKS[task].column for task in tasks) for name, tasks in tasks_by_kind.items()}
    groups = [f"{name[0].upper()}{name[1:]}: {each}" for name, each in heads.items()]
    return Table.of(recipe.rows, shown, caption=f"Means over benchmarks and seeds. {'. '.join(groups)}.")


def _costs(recipe: RecipeRuns, columns: Columns) -> Table:
    """Gain, fidelity and cost next to one another."""
    measured = any(run.results.get("fidelity") for run in recipe.runs)
    average = columns.run_average
    shown: list[Column] = [("row", "title"), ("average", _mean(average)), _minus_control(recipe, "steps", average)]
    shown += [*(MEASURED["fidelity"] if measured else ()), *MEASURED["costs"]]
    caption = f"{CAPTIONS['fidelity' if measured else 'no fidelity']} {CAPTIONS['costs']}"
    return Table.of(recipe.rows, shown, caption=caption)


def _eyes_or_reader(recipe: RecipeRuns) -> Iterator[Block]:
    """What each part of the student lacks, and what it sees."""
    measured = [of for run in recipe.runs if (of := run.results.get("eyes_or_reader"))]
    if not measured:
        yield Text(CAPTIONS["no eyes or reader"])
        return
    data = "; ".join(dict.fromkeys(map(footnotes.measured_on, measured)))
    shown: list[Column] = [("row", "title"), *MEASURED["accuracies"], *MEASURED["eyes_or_reader"]]
    yield Table.of(recipe.rows, shown, caption=CAPTIONS["eyes or reader"].format(data=data))
    if any(of.get("grounding") for of in measured):
        yield Table.of(recipe.rows, [("row", "title"), *MEASURED["grounding"]], caption=CAPTIONS["grounding"])


def _mean(score: Score) -> Callable[[RowRuns], Number | None]:
    """A row's mean over seeds; a single seed's has no interval, and no question mark for one."""

    def mean(row: RowRuns) -> Number | None:
        found = row.mean(score)
        return replace(found, seeds=None) if found and found.interval is None else found

    return mean


def _minus_control(recipe: RecipeRuns, kind: ControlKind, score: Score) -> Column:
    """The column of each row's difference from its control."""
    return f"minus {CONTROL_KINDS[kind]}", lambda row: row.minus(recipe.control(row, kind), score)


def _notes(recipe: RecipeRuns, columns: Columns, answers: AnswerUnits) -> Iterator[str]:
    yield from footnotes.benchmarks_left_out(columns)
    if "teacher" not in columns.teacher:
        yield "no scores of one teacher: no benchmark was checked against the baselines, all are in the average"
    yield from answers.notes
    yield from footnotes.stand_ins(recipe.runs)
    yield from footnotes.lengths(recipe.runs)
    yield from footnotes.versions(recipe.runs)
    if recipe.changed_rows:
        yield f"made with overrides, or with another text of the recipe than today's: {'; '.join(recipe.changed_rows)}"
    yield f"files: {shown(recipe.runs[0].path.parents[1])}"
