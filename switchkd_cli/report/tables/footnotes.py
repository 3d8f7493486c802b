"""What stands around a table so that nobody reads more into it than it says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from switchkd_cli.benchmarks import BENCHMARKS, FAULTS
from switchkd_cli.errors import printable
from switchkd_cli.report.results.finished_run import Scored, items, one_or_each
from switchkd_cli.report.stats.baselines import BASELINES
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.runs.run_folder import shown

WARNING = "warning"  # how a note begins that nobody may miss
MDE = (
    "MDE: minimum detectable effect, the smallest true difference that as many images or seeds would show to be clear in "
    "80 of 100 cases; beside every interval that holds 0"
)


def title(runs: Sequence[Scored]) -> str:
    """Recipes, world and split; the playground is never taken for the paper's benchmarks."""
    results = runs[0].results
    recipes = ", ".join(dict.fromkeys(run.recipe for run in runs if run.is_run)) or "evaluations"
    if results["world"] != "playground":
        return f"{recipes}: {results['world']}, {results['split']} split"
    return f"{recipes}: playground, {results['split']} split (a small world, not the paper's benchmarks)"


def of_scores(runs: Sequence[Scored], columns: Columns, teacher: Mapping[str, Any] | None) -> Iterator[str]:
    """The notes that every table of scores needs."""
    yield from left_out(columns)
    if not teacher or "teacher" not in teacher:
        yield "no teacher was scored: no benchmark was checked against baselines, all are in the average"
    else:
        yield "majority: the most frequent right answer of each kind; blind: the teacher shown a grey picture"
    asked = {BENCHMARKS[task].column: count for task, count in items(runs[0].results).items()}
    yield f"items a benchmark: {one_or_each(asked)}; scores 0..100, averages and differences in points"
    yield from answers(runs, teacher)
    yield from stood_in(runs)
    yield from fidelity(runs)
    yield from warnings(runs)
    if any(run.paper for run in runs):
        yield from of_paper(columns, runs[0].results["world"])


def answers(runs: Sequence[Scored], teacher: Mapping[str, Any] | None) -> Iterator[str]:
    """Whose answers were wrong whatever the model knows; a row's over its seeds."""
    asked: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name in ("teacher", "blind"):
        if teacher and name in teacher:
            asked[name].append(teacher[name])
    for run in runs:
        asked[run.title].append(run.results)
    yield from faults(asked)


def faults(asked: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """By benchmark and kind, of the results by name; a warning where they are more than half of someone's answers."""
    for task, row in BENCHMARKS.items():
        found = {
            name: [r["scores"][task] for r in each if task in r["scores"]] for name, each in asked.items()
        }
        for fault, words in FAULTS.items():
            told = [text for name, scores in found.items() if (text := _counted(name, scores, fault))]
            line = f"{row.column}: answers that {words}: {', '.join(told)}"
            if any(2 * score.get(fault, 0) > score["items"] for scores in found.values() for score in scores):
                yield f"{WARNING}: {line}: with more than half, the score says little of what a model knows"
            elif told:
                yield line


def _counted(name: str, scores: Sequence[Mapping[str, Any]], fault: str) -> str:
    """`SFT 3 of 200`, with an example of what can't be read; empty where there is none."""
    count, of = (sum(score.get(field, 0) for score in scores) for field in (fault, "items"))
    example = next((score["example"] for score in scores if score.get("example")), "")
    like = f" (e.g. {printable(example[:60])!r})" if fault == "unreadable" and example else ""
    return f"{name} {count:,} of {of:,}{like}" if count else ""


def left_out(columns: Columns) -> Iterator[str]:
    """Which benchmarks are in parentheses, and why."""
    tasks: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for task in columns.tasks:
        if task in columns.not_beaten:
            tasks[columns.not_beaten[task]].append(BENCHMARKS[task].column)
    for names, heads in tasks.items():
        beaten = " or ".join(BASELINES[name] for name in names)
        yield f"({', '.join(heads)}): the teacher does not clearly beat {beaten}: left out of the average"
    if len(columns.not_beaten) == len(columns.tasks):
        yield "no benchmark is left: there is no average"


def stood_in(runs: Sequence[Scored]) -> Iterator[str]:
    """What stood in for what: names that share a stand-in make rows that differ in nothing else one and the same."""
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs:
        for name, stand_in in run.stand_ins.items():
            names[stand_in][name] = None
    for stand_in, replaced in names.items():
        alike = " alike: they can't be told apart here" if len(replaced) > 1 else ""
        yield f"{stand_in} stands in for {' and '.join(replaced)}{alike}"


def fidelity(runs: Sequence[Scored]) -> Iterator[str]:
    """How close each row came to the teacher, the mean over its runs: gains don't make a student faithful."""
    rows: dict[tuple[str, int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        if measured := run.fidelity:
            rows[measured["data"], measured["positions"], run.title].append(measured)
    for (data, positions), group in groupby(rows.items(), key=lambda row: row[0][:2]):
        each = [
            f"{title} {100 * fmean(m['agreement'] for m in seen):.1f} % and {fmean(m['kl'] for m in seen):.2f} nats"
            for (_, _, title), seen in group
        ]
        asked = f"the same {positions:,} answer tokens of {data}"
        yield f"fidelity, agreement with the teacher and KL to it on {asked}: {'; '.join(each)}"


def warnings(runs: Sequence[Scored]) -> Iterator[str]:
    """What the diagnostics gave away; one line for what several seeds of a row have in common."""
    found: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for run in runs:
        for about in run.warnings:
            found[run.title, about].append(run)
    for (title, about), warned in found.items():
        seeds = counted(sorted({run.seed for run in warned}))
        yield f"{WARNING}, {title} ({seeds}): {warned[0].warnings[about]}"


def of_paper(columns: Columns, world: str) -> Iterator[str]:
    """What the paper's numbers may be compared with."""
    if world == "playground":
        yield "paper: printed for its own benchmarks and models; no number here is comparable with them"
        return
    yield "paper: printed numbers, its average over its ten columns"
    for task in columns.tasks:
        if BENCHMARKS[task].note:
            yield f"{BENCHMARKS[task].column}: {BENCHMARKS[task].note}"


def lengths(runs: Sequence[Scored]) -> Iterator[str]:
    """How long each run was trained; one note when it is the same for all."""
    runs = [run for run in runs if run.is_run]
    if not runs:
        return
    found = dict.fromkeys(run.length for run in runs)
    if len(found) == 1:
        yield f"trained equally long: {runs[0].length}"
        return
    for length in found:
        titles = dict.fromkeys(run.title for run in runs if run.length == length)
        yield f"not trained equally long: {length}: {'; '.join(titles)}"


def only_scored(runs: Sequence[Scored]) -> Iterator[str]:
    """Whose scores are all that is known of them."""
    if models := dict.fromkeys(run.title for run in runs if not run.is_run):
        yield f"scored by switchkd eval, its seed, training and recipe not known here (–): {'; '.join(models)}"


def versions(runs: Sequence[Scored]) -> Iterator[str]:
    """What was not the same when the runs were trained; runs that were scored unlike are in no table."""
    runs = [run for run in runs if run.is_run]
    for name in dict.fromkeys(name for run in runs for name in run.versions):
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for run in runs:
            found[run.versions.get(name, "unknown")][run.title] = None
        if len(found) > 1:
            each = "; ".join(f"{version}: {', '.join(titles)}" for version, titles in found.items())
            yield f"not trained with the same {name}: {each}"


def files(folders: Iterable[Path]) -> Iterator[str]:
    for folder in folders:
        yield f"files: {shown(folder)}"


def counted(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 1-5`, `seeds 1, 3`; the seeds rising."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
