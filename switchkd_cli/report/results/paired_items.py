"""Pair runs item by item. Refuse runs whose answers are to other questions."""

import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from switchkd_cli.benchmarks import ACCURACY, BENCHMARKS
from switchkd_cli.errors import UserError, shown
from switchkd_cli.report.results.finished_run import HINT, ScoredRun
from switchkd_cli.report.stats.stored_answers import AnswerLine, Units, disagreement, is_metric, read_answers, units
from switchkd_cli.report.texts import NOTES
from switchkd_cli.runs.run_folder import RunFolder

FIELDS = {"doc_id": "items", "prompt": "prompts", "image": "images", "key": "images", "target": "right answers"}
"""Field of an answers file -> what differs when it does. A key stands for prompt and images."""
FEW = 30
"""Images; percentile intervals of fewer are known to be too narrow."""
NEAR = 0.01  # points; lmms-eval rounds MMMU's accuracy to five places


class AnswerUnits(NamedTuple):
    """The units of every run, and notes on what can't be compared item by item."""

    units: Mapping[str, Mapping[Path, Units]]
    """By `benchmarks.NAMES`, then by run folder. A benchmark that lacks them for one run is left out."""
    notes: tuple[str, ...]


def answer_units(runs: Sequence[ScoredRun], tasks: Sequence[str]) -> AnswerUnits:
    """Read the answers of runs that were asked the same questions.

    Raises UserError with every item, prompt, image or right answer in which a run differs from the first. Answers that were not kept, or don't give the score in the results, are noted.
    """
    problems: list[str] = []
    by_task: dict[str, dict[Path, Units]] = {}
    images_by_task: dict[str, Sequence[str | None]] = {}
    notes = []
    for task in tasks:
        head = BENCHMARKS[task].column
        lines = {run.path: read_answers(RunFolder(run.path).answers, task) for run in runs}
        kept = {path: own for path, own in lines.items() if own is not None}
        problems += _other_items(head, kept)
        if missing := [shown(path) for path in lines if path not in kept]:
            notes.append(f"{head}: answers not kept, no test over items: {', '.join(missing)}")
        elif any(line["score"] is None for own in kept.values() for line in own):
            metric = runs[0].results["scores"][task].get("metric")
            notes.append(f"{head}: {NOTES['no mean'].format(metric=metric)}")
        elif not problems:
            judged = [f"{run.name} {counts}" for run in runs if (counts := disagreement(kept[run.path]))]
            if judged and not any(run.results.get("reader") for run in runs):
                notes.append(NOTES["readers"].format(head=head, runs="; ".join(judged)))
            images_by_task[task] = [line.get("image") for line in kept[runs[0].path]]
            # what one run's metric is a mean over is every run's: where all answers are right, any mean would do
            named = ([line.get("category") for line in own] for own in kept.values())
            categories = next(filter(any, named), None)
            made = {path: _units(task, own, categories) for path, own in kept.items()}
            near = is_metric if BENCHMARKS[task].stock else _near
            wrong = [
                f"{head}: no test over items: the answers of {shown(run.path)} give "
                f"{f'{given.score:.2f}' if given else 'no score'}, its results {run.scores[task]:.2f}"
                for run in runs
                if (given := made[run.path]) is None or not near(given.score, run.scores[task])
            ]
            notes += wrong
            if not wrong:
                by_task[task] = {path: given for path, given in made.items() if given}
                if BENCHMARKS[task].counted:
                    name = task + ACCURACY
                    by_task[name] = {p: given for p, own in kept.items() if (given := _units(name, own))}
    if problems:
        raise UserError(problems, hint=HINT)
    return AnswerUnits(by_task, (*notes, *_on_images(images_by_task)))


def _other_items(head: str, kept: Mapping[Path, Sequence[AnswerLine]]) -> Iterator[str]:
    """Fields of the answers in which a run differs from the first."""
    named = [(shown(path), lines) for path, lines in kept.items()]
    for name, lines in named[1:]:
        than, reference = named[0]
        if len(lines) != len(reference):
            yield f"{name}: {head}: {len(lines)} answers, {than} has {len(reference)}"
            continue
        for field, word in FIELDS.items():
            both = zip(lines, reference, strict=True)
            if differing := [(line, of) for line, of in both if line.get(field) != of.get(field)]:
                item, (ours, theirs) = differing[0][0]["doc_id"], _apart(*(of.get(field) for of in differing[0]))
                differ = f"{len(differing)} of {len(lines)} {word} differ"
                yield f"{name}: {head}: {differ}; item {item} has {ours}, that of {than} {theirs}"
                break


def _apart(one: Any, other: Any) -> tuple[str, str]:
    """Two values from where they differ, cut to a readable length."""
    if not isinstance(one, str) or not isinstance(other, str):
        return repr(one), repr(other)
    start = max(0, len(os.path.commonprefix([one, other])) - 20)
    return repr(one[start : start + 60]), repr(other[start : start + 60])


def _near(given: float, reported: float) -> bool:
    return abs(given - reported) < NEAR


def _units(name: str, lines: Sequence[AnswerLine], categories: Sequence[Any] | None = None) -> Units | None:
    shared = zip(lines, categories or [None] * len(lines), strict=True)
    named = [line | {"category": category} for line, category in shared]
    try:
        return units(name, named) if named else None
    except (ValueError, LookupError, TypeError, AttributeError):  # a field is absent, or of another type
        return None


def _on_images(images: Mapping[str, Sequence[str | None]]) -> Iterator[str]:
    """Notes on the images of each task's questions."""
    heads = {task: BENCHMARKS[task].column for task in images}
    counts = {t: (len(of), len({name or i for i, name in enumerate(of)})) for t, of in images.items()}
    shared = [f"{heads[t]} {asked:,} on {count:,}" for t, (asked, count) in counts.items() if count < asked]
    if shared:
        yield f"questions on images, which are drawn and exchanged whole: {', '.join(shared)}"
    if few := [f"{heads[task]} {count}" for task, (_, count) in counts.items() if count < FEW]:
        yield f"fewer than {FEW} images, so the intervals over items are too narrow: {', '.join(few)}"
