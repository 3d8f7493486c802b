"""A look at a data set before training: its rows, copies, answers and images, and what also stands in evaluation sets."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from warnings import catch_warnings

import numpy as np
from PIL import Image

from switchkd_cli.engine.data.image import FORMATS, images_of, stored
from switchkd_cli.engine.data.rows import Fault, Row, Rows
from switchkd_cli.recipe.schema import Recipe
from switchkd_cli.report.grouping import grouped

SAMPLE = 2_000  # rows that are read again with their images
READ = 2_000  # questions of an evaluation set whose images are read
SHOWN = 4  # kinds of anything on a line
SHORT = 32  # characters of an answer that is counted
BAR = 40  # signs of the longest bar
DETAIL = re.compile(r"[:,;] .*|\d+", re.DOTALL)  # what differs between faults of one kind

Question = tuple[str, Callable[[], Sequence[Image.Image]]]
"""A question's text, and what opens its images."""


class EvaluationSet:
    """The questions of an evaluation set. Images are read only where a row asks the same, those of `READ` questions at most."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self.by_text = grouped((text.strip(), images) for text, images in questions)
        self.read = self.unread = 0
        self._digests: dict[str, set[str]] = {}

    def images(self, text: str) -> set[str]:
        """Return digests of the images of the questions with this text."""
        if text not in self._digests:
            asked, digests = self.by_text[text], []
            for images in asked[: READ - self.read]:
                with suppress(Exception):  # a task's code and decoders raise nearly anything; counted as not read
                    digests.append(_digest(images()))
            self.read, self.unread = self.read + len(digests), self.unread + len(asked) - len(digests)
            self._digests[text] = set(digests)
        return self._digests[text]


def looks(
    config: Recipe, opened: Mapping[str, Rows], benchmarks: Mapping[str, EvaluationSet]
) -> dict[str, tuple[str, ...]]:
    """Return the lines of a `look` at each data set that is here.

    The questions of benchmarks, and of data sets that stages are validated on, are searched for in the others.
    """
    validated = {stage.validation.data for stage in config.stages if stage.validation is not None}
    sets = {name: EvaluationSet(_questions(rows)) for name, rows in opened.items() if name in validated}
    sets |= benchmarks
    return {name: tuple(look(rows, {n: sets[n] for n in sets if n != name})) for name, rows in opened.items()}


def look(rows: Rows, evaluation: Mapping[str, EvaluationSet]) -> Iterator[str]:
    """Yield what the survey of all rows says, and what a random sample of them shows.

    `evaluation`: by name, the sets that no row should stand in.
    """
    survey, count = rows.survey, len(rows)
    text_only = count - int(survey.image_mask.sum()) - len(survey.faults)
    yield f"{count:,} rows, {text_only:,} text only ({text_only / count:.0%})"
    of_length = lengths(survey.sizes, 4)
    for most, number in of_length.items():
        yield f"up to {most:>9,} characters {number:>9,} {'#' * round(BAR * number / max(of_length.values()))}".rstrip()
    if faults := Counter(DETAIL.sub("", fault.fault) for fault in survey.faults):
        yield f"unusable: {_shown(faults, count)}"
    compared = survey.digests[survey.digests > 0]
    if copies := len(compared) - len(np.unique(compared)):
        yield f"copies of another row, text and image: {copies:,} of {len(compared):,} rows that were compared"
    answers, modes, also_in = Counter[str](), Counter[str](), Counter[str]()
    sizes: list[tuple[int, str]] = []
    for row, picture in _sample(rows):
        answers.update(answer for i, (_, answer) in enumerate(row.exchanges) if i not in row.unlearnt)
        texts = {question.strip() for question, _ in row.exchanges}
        if alike := {name: same for name, asked in evaluation.items() if (same := texts & asked.by_text.keys())}:
            with suppress(Fault):  # images are decoded only here
                images = _digest(images_of(row, rows))
                also_in.update(n for n in alike if any(images in evaluation[n].images(text) for text in alike[n]))
        # the check of the images says which can't be opened
        with catch_warnings(action="ignore"), suppress(Exception):
            image = Image.open(BytesIO(picture), formats=FORMATS)
            sizes.append((image.width * image.height, f"{image.width} x {image.height}"))
            modes[image.mode] += 1
    of = f" of a sample of {SAMPLE:,} rows" if count > SAMPLE else ""
    if short := _shown({answer: n for answer, n in answers.items() if len(answer) <= SHORT}, answers.total()):
        yield f"answers{of}: {answers.total():,}, the most frequent: {short}"
    if sizes:
        yield f"images{of}: {min(sizes)[1]} to {max(sizes)[1]} pixels, {_shown(modes, len(sizes))}"
    for name, asked in evaluation.items():
        unread = f" ({asked.unread:,} questions with such texts were not read)" if asked.unread else ""
        yield f"rows{of} that also stand in {name}, picture and question: {also_in[name]:,}{unread}"


def _sample(rows: Rows) -> Iterator[tuple[Row, bytes]]:
    """Yield usable rows, all or a random sample, with their images as they are stored (text alone: no bytes)."""
    for index in random.Random(0).sample(range(len(rows)), min(len(rows), SAMPLE)):
        with suppress(Fault):  # counted by the checks before a training
            row = rows[index]
            yield row, b"".join(stored(image, rows.images, follow_links=rows.follow_links) for image in row.images)


def _questions(rows: Rows) -> Iterator[Question]:
    for number in range(len(rows)):
        with suppress(Fault):
            yield from ((text, lambda n=number: images_of(rows[n], rows)) for text, _ in rows[number].exchanges)


def _digest(images: Sequence[Image.Image]) -> str:
    """Return a digest of the pixels, whatever format they were stored in."""
    rgb = (image.convert("RGB") for image in images)
    return hashlib.sha256(b"".join(f"{image.size}".encode() + image.tobytes() for image in rgb)).hexdigest()


def lengths(sizes: np.ndarray, base: int = 2) -> dict[int, int]:
    """Return how many rows have how many characters: by powers of `base`, the rows up to each and longer than the one before.

    `sizes` [N]: characters of each row; 0 for one that can't be used, which is not counted.
    """
    counts = np.bincount(np.ceil(np.log2(sizes[sizes > 0]) / np.log2(base)).astype(int)).tolist()
    return {base**power: count for power, count in enumerate(counts) if any(counts[: power + 1])}


def _shown(counts: Mapping[str, int], of: int) -> str:
    """Return the largest counts with their shares."""
    largest = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]
    return ", ".join(f"{what} {count:,} ({count / of:.0%})" for what, count in largest)
