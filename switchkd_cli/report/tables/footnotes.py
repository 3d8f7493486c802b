"""Notes around a table, so that nobody reads more into it than it says."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from switchkd_cli.benchmarks import ACCURACY, BENCHMARKS, FAULTS, TEN, head, in_order
from switchkd_cli.errors import printable
from switchkd_cli.report.document import WARNING
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.results.finished_run import ScoredRun, items, one_or_each
from switchkd_cli.report.results.row_runs import seeds_in_words
from switchkd_cli.report.stats.baselines import BASELINES, NEARLY_ALL, OTHER
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.texts import NOTES, TEXTS

FIGURES = {about: figures.values() for about, figures in TEXTS["measured"].items()}


def title(runs: Sequence[ScoredRun]) -> str:
    """Recipes, world and split; the playground is never taken for the paper's benchmarks."""
    results = runs[0].results
    recipes = ", ".join(dict.fromkeys(run.recipe for run in runs if run.is_run)) or "evaluations"
    small = " (a small world, not the paper's benchmarks)" if results["world"] == "playground" else ""
    return f"{recipes}: {results['world']}, {results['split']} split{small}"


def of_scores(runs: Sequence[ScoredRun], columns: Columns) -> Iterator[str]:
    """The notes that every table of scores needs."""
    yield from benchmarks_left_out(columns)
    if "teacher" not in columns.teacher:
        yield "no teacher was scored: no benchmark was checked against baselines, all are in the average"
    else:
        yield "majority: the most frequent right answer of each kind; blind: the teacher shown a grey image"
    asked = {BENCHMARKS[task].column: count for task, count in items(runs[0].results).items()}
    yield f"items per benchmark: {one_or_each(asked)}; scores 0..100, averages and differences in points"
    yield from scales(runs, columns)
    yield from answers(runs, columns.teacher)
    yield from stand_ins(runs)
    yield from compared_with_teacher(runs)
    yield from warnings(runs)
    if any(run.paper for run in runs):
        if runs[0].results["world"] == "playground":
            yield "paper: printed for its own benchmarks and models; no number here is comparable with them"
        else:
            yield "paper: printed numbers, its average over its ten columns"
            rows = (BENCHMARKS[task] for task in columns.tasks)
            yield from (f"{row.column}: {row.note}" for row in rows if row.note)


def scales(runs: Sequence[ScoredRun], columns: Columns) -> Iterator[str]:
    """Which columns are not in points, and which of them are better when lower."""
    if own := [task for task in columns.tasks if not BENCHMARKS[task].in_points]:
        yield f"{', '.join(own)}: on their own scales, not in points"
        measured = runs[0].results["scores"]
        if lower := [task for task in own if not measured[task].get("higher_is_better", True)]:
            yield f"lower is better, so a negative difference is a gain: {', '.join(lower)}"


def answers(runs: Sequence[ScoredRun], teacher: Mapping[str, Any]) -> Iterator[str]:
    """What the answers themselves say against a score, counted for each row over its seeds."""
    named = [(name, teacher[name]) for name in ("teacher", "blind") if name in teacher]
    yield from faults(grouped([*named, *((run.title, run.results) for run in runs)]))


def faults(named: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The same of results by name, by benchmark: faults, a warning where they are more than half, and one-word rows."""
    for task in in_order({task for each in named.values() for r in each for task in r["scores"]}):
        row = BENCHMARKS[task]
        scores = {name: [r["scores"][task] for r in each if task in r["scores"]] for name, each in named.items()}
        for fault, words in FAULTS.items():
            counts = [text for name, each in scores.items() if (text := _count(name, each, fault))]
            line = f"{row.column}: answers that {words}: {', '.join(counts)}"
            if any(2 * score.get(fault, 0) > score["items"] for each in scores.values() for score in each):
                yield f"{WARNING}: {line}: with more than half, the score says little of what a model knows"
            elif counts:
                yield line
        for word in OTHER:
            if always := [text for name, each in scores.items() if (text := _always(name, each, word))]:
                yield NOTES["always"].format(head=row.column, word=word, share=NEARLY_ALL, rows=", ".join(always))


def _count(name: str, scores: Sequence[Mapping[str, Any]], fault: str) -> str:
    """`SFT 3 of 200`, with an example of an unreadable answer; empty where there is none."""
    count, of = (sum(score.get(field, 0) for score in scores) for field in (fault, "items"))
    example = next((score["example"] for score in scores if score.get("example")), "")
    like = f" (e.g. {printable(example[:60])!r})" if fault == "unreadable" and example else ""
    return f"{name} {count:,} of {of:,}{like}" if count else ""


def _always(name: str, scores: Sequence[Mapping[str, Any]], word: str) -> str:
    """`SFT 198 of 200` where nearly all readable answers are this word; else empty."""
    counts = {each: sum(score.get(each, 0) for score in scores) for each in OTHER}
    said, read = counts[word], sum(counts.values())
    return f"{name} {said:,} of {read:,}" if read and 100 * said >= NEARLY_ALL * read else ""


def benchmarks_left_out(columns: Columns) -> Iterator[str]:
    """Which columns are in parentheses, and why."""
    tasks = [task for task in columns.tasks if task in columns.not_beaten]
    for names, heads in grouped((columns.not_beaten[task], BENCHMARKS[task].column) for task in tasks).items():
        beaten = " or ".join(BASELINES[name] for name in names)
        left = f"({', '.join(heads)}): the teacher does not clearly beat {beaten}: left out of the average"
        yield left if columns.averaged else f"{', '.join(heads)}: the teacher does not clearly beat {beaten}"
    others = [BENCHMARKS[task].column for task in columns.tasks if task not in columns.averaged]
    if others and columns.averaged:
        averaged = "the paper's ten" if columns.averaged[0] in TEN else "the metrics of one's own rows"
        yield f"({', '.join(others)}): not among {averaged}: in no average"
    if pairs := [BENCHMARKS[task].column for task in columns.tasks if BENCHMARKS[task].pairs]:
        yield f"{', '.join(pairs)}: right on both images of a pair; majority is a coin, since a constant is never right"
    if not columns.counted_tasks:
        yield "no benchmark is left: there is no average" if columns.averaged else NOTES["no average"]
    for row in (BENCHMARKS[task] for task in columns.tasks if task + ACCURACY in columns.names):
        yield NOTES["accuracy"].format(head=head(row.task + ACCURACY), score=row.column, counted=row.counted)


def stand_ins(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Stand-ins and the names they replaced; rows that differ only in names of one stand-in are the same row."""
    pairs = ((stand_in, name) for run in runs for name, stand_in in run.stand_ins.items())
    for stand_in, replaced in grouped(dict.fromkeys(pairs)).items():
        alike = " alike: they can't be told apart here" if len(replaced) > 1 else ""
        yield f"{stand_in} stands in for {' and '.join(replaced)}{alike}"


def compared_with_teacher(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """How close each row came to the teacher, and what it would gain with the teacher's vision tower or reader.

    Means over its runs: gains don't make a student faithful.
    """
    for about in ("fidelity", "eyes_or_reader"):
        found = [(run.title, of) for run in runs if (of := run.results.get(about))]
        groups = grouped(((of["data"], measured_on(of), of["positions"]), (title, of)) for title, of in found)
        for where, rows in groups.items():
            means = {
                title: [format(factor * fmean(of[name] for of in own), form) for name, factor, form in FIGURES[about]]
                for title, own in grouped(rows).items()
            }
            each = "; ".join(f"{title} {NOTES[f'{about} of a row'].format(*values)}" for title, values in means.items())
            yield NOTES[about].format(*where, rows=each)


def measured_on(of: Mapping[str, Any]) -> str:
    """The data of a measurement, and whether the student was trained on them, where that is known."""
    return of["data"] + ("" if "held_out" not in of else ", held out" if of["held_out"] else ", trained on")


def warnings(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Training warnings, a line for each that several seeds of a row share."""
    for warned, text in shared_warnings(runs):
        seeds = seeds_in_words(sorted({run.seed or 0 for run in warned}))
        yield f"{WARNING}, {warned[0].title} ({seeds}): {text}"


def shared_warnings(runs: Sequence[ScoredRun]) -> list[tuple[list[ScoredRun], str]]:
    """Training warnings, each with the runs of one row that share it and the first run's text."""
    shared = grouped(((run.title, about), run) for run in runs for about in run.warnings)
    return [(warned, warned[0].warnings[about]) for (_, about), warned in shared.items()]


def lengths(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Training length of each run; one note when it is the same for all."""
    groups = grouped(dict.fromkeys((run.length, run.title) for run in runs if run.is_run))
    for length, titles in groups.items():
        same = f"trained equally long: {length}"
        yield same if len(groups) == 1 else f"not {same}: {'; '.join(titles)}"


def scored_models(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Models of which only the scores are known."""
    if models := dict.fromkeys(run.title for run in runs if not run.is_run):
        yield f"scored by switchkd eval, its seed, training and recipe not known here (–): {'; '.join(models)}"


def versions(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Library versions that differed between trainings; runs scored with different versions are in no table."""
    runs = [run for run in runs if run.is_run]
    for name in dict.fromkeys(name for run in runs for name in run.versions):
        groups = grouped(dict.fromkeys((run.versions.get(name, "unknown"), run.title) for run in runs))
        if len(groups) > 1:
            each = "; ".join(f"{version}: {', '.join(titles)}" for version, titles in groups.items())
            yield f"not trained with the same {name}: {each}"
