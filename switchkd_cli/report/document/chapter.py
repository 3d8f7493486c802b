"""One recipe's chapter: its tables, what was gained over its controls, at what cost, and what must be known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError
from switchkd_cli.report.document.blocks import Block, Callout, Picture, Points, Section, Sheet, Text
from switchkd_cli.report.results.controls import KINDS, Controls, Kind
from switchkd_cli.report.results.recipe_runs import STATES, Gathered
from switchkd_cli.report.stats import paired_items
from switchkd_cli.report.tables import footnotes, per_recipe
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.tables.comparison import same_questions
from switchkd_cli.report.tables.differences import ALPHA

PAPER = "Printed in the paper, for its own models, data and benchmarks: single runs, no intervals."


def chapter(recipe: Gathered, pictures: Sequence[Picture | Text]) -> Section:
    """All of a recipe's runs. Runs that may not stand in one table are refused here, and the reasons told."""
    head = (Text(_count(recipe)), *_lacking(recipe))
    if not recipe.runs:
        return Section(
            recipe.title, recipe.stem, (*head, Callout("No run has scores: nothing to show.", "problem"))
        )
    try:
        same_questions(recipe.runs, recipe.teacher)
        columns = Columns.of(recipe.runs[0].scores, recipe.teacher)
        answers = paired_items.answered(recipe.runs, columns.tasks)
    except UserError as refused:
        told = "These runs can't be compared: " + "; ".join(refused.problems)
        return Section(recipe.title, recipe.stem, (*head, Callout(told, "problem")))
    return Section(
        recipe.title,
        recipe.stem,
        head,
        (
            _part(recipe, "Scores", _scores(recipe, columns)),
            *(_part(recipe, KINDS[kind], blocks) for kind, blocks in _gains(recipe, columns, answers)),
            _part(recipe, "By kind of answer", _kinds(recipe, columns)),
            _part(recipe, "Gain, fidelity and cost", _costs(recipe, columns)),
            _part(recipe, "Pictures", pictures),
            _part(recipe, "Diagnostics", _diagnostics(recipe)),
            _part(recipe, "To know", [Points(tuple(_remarks(recipe, columns, answers)))]),
        ),
    )


def _part(recipe: Gathered, title: str, blocks: Sequence[Block]) -> Section:
    anchor = f"{recipe.stem}-{'-'.join(title.lower().replace(',', '').split())}"
    return Section(
        title, anchor, tuple(blocks) or (Text("None: the lines at the top of the report say why."),)
    )


def _count(recipe: Gathered) -> str:
    seeds = f" ({footnotes.counted(recipe.seeds)})" if recipe.seeds else ""
    found = f"{len(recipe.asked)} rows, {len(recipe.runs)} of {len(recipe.states)} runs finished and scored{seeds}."
    return found + (f" Not run: {'; '.join(recipe.unasked)}." if recipe.unasked else "")


def _lacking(recipe: Gathered) -> Iterator[Block]:
    """What is not in the tables, run by run."""
    lines = [
        f"{title}: {STATES[state]}, {footnotes.counted(seeds)}" for state, title, seeds in recipe.lacking()
    ]
    if lines:
        count = sum(state != "finished" for state in recipe.states.values())
        told = "One run is" if count == 1 else f"{count} runs are"
        yield Callout(f"{told} missing: {'; '.join(lines)}.", "problem")


def _scores(recipe: Gathered, columns: Columns) -> Iterator[Block]:
    yield Sheet(
        per_recipe.scores(recipe, columns),
        "0 to 100, the mean over seeds ± half of its 95 % t interval."
        + (
            " Majority: the most frequent right answer of each kind; blind: the teacher shown a grey picture."
            if recipe.teacher
            else ""
        )
        + (" In grey and parentheses: left out of the average." if columns.not_beaten else ""),
    )
    for note in footnotes.answers(recipe.runs, recipe.teacher):
        yield Callout(note, "problem") if note.startswith(footnotes.WARNING) else Text(note)
    if printed := per_recipe.printed(recipe, columns):
        yield Sheet(printed, PAPER, "paper")


def _gains(
    recipe: Gathered, columns: Columns, answers: paired_items.Answered
) -> Iterator[tuple[Kind, list[Block]]]:
    controls = Controls(recipe.plain)
    for kind in KINDS:
        found = per_recipe.compared(recipe, columns, answers, kind)
        if not found:
            wanted = [run.title for run in recipe.planned if run.row in controls.every(kind)]
            told = f"no finished run of {' or '.join(wanted)}" if wanted else "the recipe has no such row"
            yield kind, [Text(f"Nothing to measure by: {told}.")]
            continue
        average, each = per_recipe.gains(found, columns, kind)
        tests = sum(d.p is not None for row in found for d in row.found)
        whole = Sheet(average, _tested(recipe, kind, tests), drawn="difference")
        yield kind, [Text(" ".join(per_recipe.verdict(found))), whole, Sheet(each, _marked())]


def _tested(recipe: Gathered, kind: Kind, tests: int) -> str:
    equal = f" Equal to the compute of {recipe.planned[0].title}." if kind == "compute" else ""
    return (
        f"Difference: over paired seeds ± half of the 95 % t interval. 95 % items, p: over the same items, the runs "
        f"taken as they are; Holm: corrected for the {tests} tests of both tables.{equal}"
    )


def _marked() -> str:
    return (
        "Bold: the interval over seeds leaves 0 out. Asterisk: beyond chance over the items after Holm's correction "
        f"(p < {ALPHA:g}). {footnotes.MDE}."
    )


def _kinds(recipe: Gathered, columns: Columns) -> Iterator[Block]:
    if table := per_recipe.kinds(recipe, columns):
        groups = [
            f"{name[0].upper()}{name[1:]}: {', '.join(BENCHMARKS[task].column for task in tasks)}"
            for name, tasks in per_recipe.by_kind(columns).items()
        ]
        yield Sheet(table, f"Means over benchmarks and seeds. {'. '.join(groups)}.")
    else:
        yield Text("The benchmarks that count ask for one kind of answer only.")


def _costs(recipe: Gathered, columns: Columns) -> Iterator[Block]:
    if any(run.fidelity for run in recipe.runs):
        told = (
            "Agreement with the teacher's first choice and KL to it are taken at the same answer tokens of the "
            "training data: a student can gain without becoming faithful."
        )
    else:
        told = "Agreement with the teacher and KL to it were not measured in these runs."
    cost = "Seconds and memory depend on the machine and on what else ran on it. Means over seeds."
    yield Sheet(per_recipe.costs(recipe, columns), f"{told} {cost}")


def _remarks(recipe: Gathered, columns: Columns, answers: paired_items.Answered) -> Iterator[str]:
    yield from footnotes.left_out(columns)
    if not recipe.teacher or "teacher" not in recipe.teacher:
        yield "no scores of one teacher: no benchmark was checked against the baselines, all are in the average"
    yield from answers.notes
    yield from footnotes.stood_in(recipe.runs)
    yield from footnotes.lengths(recipe.runs)
    yield from footnotes.versions(recipe.runs)
    if recipe.changed:
        yield f"made with overrides, or by another text of the recipe than today's: {'; '.join(recipe.changed)}"
    yield from footnotes.files([recipe.runs[0].path.parents[1]])


def _diagnostics(recipe: Gathered) -> Iterator[Block]:
    warned = tuple(_warnings(recipe))
    yield Points(warned) if warned else Text("No run gave a warning.")


def _warnings(recipe: Gathered) -> Iterator[str]:
    """What the diagnostics gave away, one line for what runs have in common, counted over seeds."""
    found = defaultdict(list)
    for run in recipe.runs:
        for about in run.warnings:
            found[run.title, about].append(run)
    for (title, about), warned in found.items():
        of = sum(run.title == title for run in recipe.runs)
        yield f"{title}, {len(warned)} of {of} runs: {warned[0].warnings[about]}"
