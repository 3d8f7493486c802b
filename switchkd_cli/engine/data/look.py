"""A look at a data set before training: its rows, copies, answers and images, one line each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

import numpy as np

from switchkd_cli.engine.data.image import size_and_mode
from switchkd_cli.engine.data.rows import Fault, Rows

SHOWN = 4  # kinds of anything on a line
DETAIL = re.compile(r"[:,;] .*|\d+", re.DOTALL)  # what differs between faults of one kind


def look(rows: Rows, sample: Iterable[int]) -> Iterator[str]:
    """Yield what the survey of all rows says, and the sizes and modes of the images of the `sample`.

    Images are not decoded for this. Rows whose images lie in the data file are not compared with one another.
    """
    survey, count = rows.survey, len(rows)
    usable = survey.sizes[survey.sizes > 0]
    text_only = count - int(survey.image_mask.sum()) - len(survey.faults)
    middle, most = np.percentile(usable, [50, 99]) if len(usable) else (0, 0)
    lengths = f"characters: {middle:,.0f} in the median, {most:,.0f} in 99 %, {survey.sizes.max():,} at most"
    yield f"{count:,} rows, {text_only:,} text only ({text_only / count:.0%}); {lengths}"
    if faults := Counter(DETAIL.sub("", fault.fault) for fault in survey.faults):
        yield f"unusable: {_shown(faults, count)}"
    compared = survey.digests[survey.digests > 0]
    if copies := len(compared) - len(np.unique(compared)):
        yield f"copies of another row, text and image: {copies:,} of {len(compared):,} rows that were compared"
    if survey.answers:
        yield f"answers: {survey.answer_count:,}, the most frequent: {_shown(survey.answers, survey.answer_count)}"
    sizes, modes = [], Counter[str]()
    for index in sample:
        with suppress(Fault):
            for image in rows[index].images:
                size, mode = size_and_mode(image, rows.images, rows.follow_links)
                sizes.append(size)
                modes[mode] += 1
    if sizes:
        least, largest = (choose(sizes, key=lambda size: size[0] * size[1]) for choose in (min, max))
        span = f"{least[0]} x {least[1]} to {largest[0]} x {largest[1]} pixels"
        yield f"images: {span}, {_shown(modes, len(sizes))} of a sample of {len(sizes):,}"


def _shown(counts: Mapping[str, int], of: int) -> str:
    """Return the largest counts with their shares."""
    largest = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]
    return ", ".join(f"{what} {count:,} ({count / of:.0%})" for what, count in largest)
