"""Write one HTML page that needs no other file: an image, a question, and the stored answers of several models to it."""

import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_text
from switchkd_cli.report.formats.markup import data_uri, render
from switchkd_cli.report.results.finished_run import ScoredRun, TeacherScores
from switchkd_cli.report.results.row_runs import group_by_row, reference
from switchkd_cli.report.stats.stored_answers import read_answers
from switchkd_cli.report.tables.columns import Columns
from switchkd_cli.report.tables.footnotes import title
from switchkd_cli.runs.run_folder import RunFolder

MOST = 400
"""Examples on a page."""
SIDE = 320
"""The most pixels of an image's longer side."""

Question = tuple[str, Any]
"""A task and the `doc_id` of one of its questions."""


def write_demo(
    file: Path,
    runs: Sequence[ScoredRun],
    teacher: TeacherScores,
    of_teacher: Path,
    open_images: Callable[[Collection[Question]], Mapping[str, Sequence[Image]]],
    *,
    controls: Sequence[str] = (),
    against: str | None = None,
) -> None:
    """Write the page of up to `MOST` questions, evenly from each benchmark, and a few more.

    Shown are the teacher, whose answers are in the folder `of_teacher`, the row that `row_runs.reference` chooses, and
    the other rows, of each its first run. `open_images` gives the images of questions by their digest, where their data
    are on this machine. Raises UserError for runs that were not asked the same questions, or whose answers were not kept.
    """
    rows = group_by_row(runs)
    first = reference(rows, controls, against)
    answers = {"teacher": of_teacher} if "teacher" in (teacher or {}) else {}
    for row in sorted(rows, key=lambda row: row is not first):
        name = row.name if len(row.runs) == 1 else f"{row.title} (seed {row.runs[0].seed})"
        answers[name] = RunFolder(row.runs[0].path).answers
    tasks = Columns.of_runs(runs, teacher).tasks
    kept = {task: [read_answers(folder, task) for folder in answers.values()] for task in tasks}
    lines = {task: list(zip(*each, strict=True)) for task, each in kept.items() if all(each)}
    if not lines:
        raise UserError("--demo: the answers of these runs were not kept")
    total = sum(map(len, lines.values()))
    step = math.ceil(total / MOST)
    chosen = [(task, same) for task, asked in lines.items() for same in asked[::step]]
    images = open_images({(task, same[0]["doc_id"]) for task, same in chosen})
    page = {
        "title": title(runs),
        "shown": f"{len(chosen):,} of {total:,} questions" + f", one in {step} of each benchmark" * (step > 1),
        "names": list(answers),
        "examples": [
            {"benchmark": BENCHMARKS[task].column, "lines": same, "graded": BENCHMARKS[task].in_points}
            for task, same in chosen
        ],
        "images": {digest: [_data_uri(image) for image in own] for digest, own in images.items()},
    }
    write_text(file, render("demo.html.jinja", page))


def _data_uri(image: Image) -> str:
    """The image, made smaller."""
    small, data = image.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(data, "WEBP", quality=85)
    return data_uri(data.getvalue(), "webp")
