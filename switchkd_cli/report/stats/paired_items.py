"""Runs put together item by item: refused where they did not answer the same, or were not scored alike."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError
from switchkd_cli.report.results.finished_run import Scored
from switchkd_cli.report.stats.metric_units import NEAR, Line, Units, read_answers, units
from switchkd_cli.runs.run_folder import shown

IMAGE = "image"
FIELDS = {"doc_id": "items", "prompt": "prompts", IMAGE: "images", "key": "images", "target": "right answers"}
"""Field of an answers file -> what differs when it does. A key names prompt and images."""
FEW = 30
"""Images; percentile intervals of fewer are known to be too narrow."""
HINT = "train and score the runs with one installation, on one world: switchkd distill RECIPE --overwrite"


@dataclass(frozen=True)
class Answered:
    """The units of every run, and what can't be compared item by item."""

    units: Mapping[str, Mapping[Path, Units]]
    """By benchmark, then by run folder. A benchmark that lacks them for one run is left out."""
    notes: tuple[str, ...]


def answered(runs: Sequence[Scored], tasks: Sequence[str]) -> Answered:
    """Reads the answers of runs whose questions are the same.

    Raises UserError naming every version, item, prompt, picture or right answer in which a run differs from
    the first. Answers that were not kept, or don't give the score that stands in the results, are noted.
    """
    problems = list(_versions(runs))
    found, notes, known = {}, [], {}
    for task in tasks:
        lines = {run.path: read_answers(run.answers, task) for run in runs}
        kept = [(run, lines[run.path]) for run in runs if lines[run.path] is not None]
        problems += _other_items(task, kept)
        if len(kept) < len(runs):
            missing = [shown(run.path) for run in runs if lines[run.path] is None]
            notes.append(
                f"{BENCHMARKS[task].column}: answers not kept, no test over items: {', '.join(missing)}"
            )
        elif not problems:
            images = next((of for of in map(_images, lines.values()) if of), None)
            made = {run.path: _units(task, _shown(of_run, images)) for run, of_run in kept}
            known[task] = images
            wrong = [run for run in runs if not _gives(made[run.path], run.scores[task])]
            notes += [_not_the_score(task, made[run.path], run) for run in wrong]
            if not wrong:
                found[task] = made
    if problems:
        raise UserError(problems, hint=HINT)
    return Answered(found, (*notes, *_on_images(known)))


def _versions(runs: Sequence[Scored]) -> Iterator[str]:
    """What the scores were computed with."""
    first, *others = runs
    for run in others:
        ours, theirs = run.results.get("versions") or {}, first.results.get("versions") or {}
        for name in dict.fromkeys((*theirs, *ours)):
            if ours.get(name) != theirs.get(name):
                yield (
                    f"{shown(run.path)}: {name} is {ours.get(name)}, "
                    f"that of {shown(first.path)} is {theirs.get(name)}"
                )


def _other_items(task: str, kept: Sequence[tuple[Scored, Sequence[Line]]]) -> Iterator[str]:
    if not kept:
        return
    (first, reference), *others = kept
    head, than = BENCHMARKS[task].column, shown(first.path)
    for run, lines in others:
        name = shown(run.path)
        if len(lines) != len(reference):
            yield f"{name}: {head}: {len(lines)} answers, {than} has {len(reference)}"
            continue
        for field, word in FIELDS.items():
            if field == IMAGE and (_images(lines) is None or _images(reference) is None):
                continue  # written before it was: the key tells
            places = [i for i, line in enumerate(lines) if line.get(field) != reference[i].get(field)]
            if places:
                at = places[0]
                ours, theirs = _apart(lines[at].get(field), reference[at].get(field))
                yield (
                    f"{name}: {head}: {len(places)} of {len(lines)} {word} differ; "
                    f"item {lines[at]['doc_id']} has {ours}, that of {than} {theirs}"
                )
                break


def _images(lines: Sequence[Line]) -> list[str | None] | None:
    """The image of each line; None where they were written before `image` was."""
    return [line[IMAGE] for line in lines] if all(IMAGE in line for line in lines) else None


def _shown(lines: Sequence[Line], images: Sequence[str | None] | None) -> Sequence[Line]:
    """The lines with their images: runs whose keys agree show the same ones, so one that names them will do."""
    return [line | {IMAGE: image} for line, image in zip(lines, images or [None] * len(lines), strict=True)]


def _on_images(images: Mapping[str, Sequence[str | None] | None]) -> Iterator[str]:
    """What must be known of the images that each task's questions are about."""
    counts = {t: (len(of), len({name or i for i, name in enumerate(of)})) for t, of in images.items() if of}
    shared = {task: f"{asked:,} on {count:,}" for task, (asked, count) in counts.items() if count < asked}
    if shared:
        yield f"questions on images, which are drawn and exchanged whole: {_each(shared)}"
    if few := {task: str(count) for task, (_, count) in counts.items() if count < FEW}:
        yield f"fewer than {FEW} images, so the intervals over items are too narrow: {_each(few)}"
    if unknown := [BENCHMARKS[task].column for task, of in images.items() if of is None]:
        yield (
            "answers written before they named their image: questions are taken as independent, and where several "
            f"are about one image, the intervals over items are too narrow: {', '.join(unknown)}"
        )


def _each(told: Mapping[str, str]) -> str:
    return ", ".join(f"{BENCHMARKS[task].column} {words}" for task, words in told.items())


def _apart(one: Any, other: Any) -> tuple[str, str]:
    """Two values where they part, cut to what can be read."""
    if not isinstance(one, str) or not isinstance(other, str):
        return repr(one), repr(other)
    start = max(0, len(os.path.commonprefix([one, other])) - 20)
    return repr(one[start : start + 60]), repr(other[start : start + 60])


def _units(task: str, lines: Sequence[Line]) -> Units | None:
    try:
        return units(task, lines) if lines else None
    except (ValueError, LookupError, TypeError, AttributeError):  # a field is absent, or of another type
        return None


def _gives(made: Units | None, score: float) -> bool:
    return made is not None and abs(made.score - score) < NEAR


def _not_the_score(task: str, made: Units | None, run: Scored) -> str:
    got = "no score" if made is None else f"{made.score:.2f}"
    return (
        f"{BENCHMARKS[task].column}: no test over items: the answers of {shown(run.path)} give {got}, "
        f"its results {run.scores[task]:.2f}"
    )
