"""One recipe's chapter: its tables, the gains over its controls, their cost, and notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from switchkd_cli.errors import UserError
from switchkd_cli.report.document.model import WARNING, Block, Callout, Points, Section, Text
from switchkd_cli.report.results.recipe_runs import CONTROL_KINDS, STATES, RecipeRuns
from switchkd_cli.report.results.row_runs import seeds_in_words
from switchkd_cli.report.stats.paired_items import AnswerUnits, answer_units
from switchkd_cli.report.tables import footnotes, recipe_tables
from switchkd_cli.report.tables.columns import Columns


def chapter(recipe: RecipeRuns, figures: Sequence[Block]) -> Section:
    """All runs of a recipe. Runs that can't stand in one table are refused here, with the reasons."""
    head = tuple(_head(recipe))
    if not recipe.runs:
        nothing = Callout("No run has scores: nothing to show.", "problem")
        return Section(recipe.title, recipe.stem, (*head, nothing))
    try:
        columns = Columns.of_runs(recipe.runs, recipe.teacher)
        answers = answer_units(recipe.runs, columns.tasks)
    except UserError as refused:
        reasons = "These runs can't be compared: " + "; ".join(refused.problems)
        return Section(recipe.title, recipe.stem, (*head, Callout(reasons, "problem")))
    warned = [
        f"{runs[0].title}, {len(runs)} of {sum(r.title == runs[0].title for r in recipe.runs)} runs: {text}"
        for runs, text in footnotes.shared_warnings(recipe.runs)
    ]
    parts: dict[str, Sequence[Block]] = {
        "Scores": list(_scores(recipe, columns)),
        **_gains(recipe, columns, answers),
        "By kind of answer": [
            recipe_tables.answer_kinds(recipe, columns)
            or Text("The benchmarks that count ask for one kind of answer only.")
        ],
        "Gain, fidelity and cost": [recipe_tables.costs(recipe, columns)],
        "Figures": figures or [Text("None: the lines at the top of the report say why.")],
        "Diagnostics": [Points(tuple(warned)) if warned else Text("No run gave a warning.")],
        "Notes": [Points(tuple(_notes(recipe, columns, answers)))],
    }
    sections = tuple(
        Section(title, f"{recipe.stem}-{'-'.join(title.lower().replace(',', '').split())}", tuple(blocks))
        for title, blocks in parts.items()
    )
    return Section(recipe.title, recipe.stem, head, sections)


def _head(recipe: RecipeRuns) -> Iterator[Block]:
    """How many runs finished, and which are not in the tables."""
    seeds = f" ({seeds_in_words(recipe.seeds)})" if recipe.seeds else ""
    finished = f"{len(recipe.runs)} of {len(recipe.states)} runs finished and scored{seeds}."
    not_started = f" Not run: {'; '.join(recipe.rows_not_started)}." if recipe.rows_not_started else ""
    yield Text(f"{len(recipe.started_rows)} rows, {finished}{not_started}")
    if missing := [f"{title}: {STATES[state]}, {seeds_in_words(own)}" for state, title, own in recipe.unfinished()]:
        count = sum(state != "finished" for state in recipe.states.values())
        many = "One run is" if count == 1 else f"{count} runs are"
        yield Callout(f"{many} missing: {'; '.join(missing)}.", "problem")


def _scores(recipe: RecipeRuns, columns: Columns) -> Iterator[Block]:
    yield recipe_tables.scores(recipe, columns)
    for note in footnotes.answers(recipe.runs, recipe.teacher):
        yield Callout(note, "problem") if note.startswith(WARNING) else Text(note)
    yield from recipe_tables.paper_numbers(recipe, columns)


def _gains(recipe: RecipeRuns, columns: Columns, answers: AnswerUnits) -> dict[str, Sequence[Block]]:
    """The gains over each kind of control."""
    parts: dict[str, Sequence[Block]] = {}
    for kind, title in CONTROL_KINDS.items():
        rows = recipe_tables.compare_with_controls(recipe, columns, answers, kind)
        if rows:
            tables = recipe_tables.gains(rows, columns, kind, recipe.planned_rows[0].title)
            parts[title] = [Text(recipe_tables.verdict(rows)), *tables]
        else:
            controls = [run.title for run in recipe.controls.every(kind)]
            lacking = f"no finished run of {' or '.join(controls)}" if controls else "the recipe has no such row"
            parts[title] = [Text(f"No control to compare with: {lacking}.")]
    return parts


def _notes(recipe: RecipeRuns, columns: Columns, answers: AnswerUnits) -> Iterator[str]:
    yield from footnotes.benchmarks_left_out(columns)
    if not recipe.teacher or "teacher" not in recipe.teacher:
        yield "no scores of one teacher: no benchmark was checked against the baselines, all are in the average"
    yield from answers.notes
    yield from footnotes.stand_ins(recipe.runs)
    yield from footnotes.lengths(recipe.runs)
    yield from footnotes.versions(recipe.runs)
    if recipe.changed_rows:
        yield f"made with overrides, or with another text of the recipe than today's: {'; '.join(recipe.changed_rows)}"
    yield from footnotes.files([recipe.runs[0].path.parents[1]])
