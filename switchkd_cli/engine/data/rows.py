"""Rows of a data set from any file format: conversations with images, their texts checked.

Unusable rows are counted, listed in a file, and an error when their share is above `max_faults`.
"""

import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import chain
from pathlib import Path
from tarfile import TarError

import numpy as np

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.errors import UserError, did_you_mean, printable
from switchkd_cli.files.atomic import append_json_lines, json_lines

TURNS = ("chained", "independent")
LONGEST = 1 << 20  # characters a row may have: the tokens of a longer one would fill the memory
NAMED = 100  # characters of a row's id or values that a message shows
NOTED = 1000  # different notes that are counted; every row could have a key of its own
FACTS = np.dtype([("size", np.int32), ("has_image", bool), ("digest", np.uint64)])  # of each row, see `Survey`
NAMED_ROWS = 5  # unusable rows named in an error; the rest are counted
SHOWN = 12  # notes of each kind that are shown

LEFT_OUT, NOT_LEARNT, NOT_READ = "left out", "seen, but not learnt", "keys that are not read"
PAIRED = ("pairs", "a preferred answer and a rejected one")
Note = tuple[str, str]
"""(kind, text): one of these three kinds, and what it is about; or `PAIRED`, which no line is about."""


@dataclass(frozen=True)
class Row:
    """One conversation: questions and answers without placeholders.

    `images` are paths inside the data set's image folder, or encoded images. `places` says where each one stands: the
    number of an exchange, and of its question's characters before the image; without it all stand before the first
    question. `unlearnt` are the exchanges whose answers are read but not supervised. `notes` name the parts of the raw row
    that are not used, or not learnt. `paired`: the last two exchanges are one question, with the answer that is preferred and
    with the one that was rejected; those before them are their history.
    """

    id: str
    exchanges: tuple[tuple[str, str], ...]
    images: tuple[str | bytes, ...] = ()
    system: str | None = None
    unlearnt: frozenset[int] = frozenset()
    notes: tuple[Note, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    paired: bool = False

    @property
    def size(self) -> int:
        """Number of characters of its text; rows of similar length are grouped by it."""
        return sum(len(question) + len(answer) for question, answer in self.exchanges)


class Fault(Exception):
    """Why a row can't be used. `refused`: a single such row ends the run, whatever `max_faults` allows.

    The message is made `printable`, as it may quote anything that a row holds.
    """

    def __init__(self, text: str, id: str = "", *, refused: bool = False) -> None:
        self.id = id
        self.refused = refused
        super().__init__(printable(text, 5 * NAMED))

    def at(self, row: int) -> Unusable:
        """Return the row of this number as an unusable one."""
        return Unusable(row, self.id, str(self), self.refused)


Parse = Callable[[object], Row]
"""Turns a raw row (a value from JSON or parquet) into a Row. Raises Fault."""


@dataclass(frozen=True)
class Survey:
    """What one pass over the texts of all N rows found, small enough to stay in memory."""

    sizes: np.ndarray  # [N] int32, characters
    image_mask: np.ndarray  # [N] bool: rows with an image
    faults: tuple[Unusable, ...]
    images: bytes  # image paths of usable rows, as JSON: a million file names take little memory so
    notes: Mapping[Note, int]  # number of rows with each note
    digests: np.ndarray  # [N] uint64: rows of equal text and image path have the same; 0: not compared
    spans: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # [N] rows' first and last byte
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # [files] number of each one's first row

    @property
    def has_pairs(self) -> bool:
        """Whether a row has a preferred answer and a rejected one."""
        return PAIRED in self.notes

    @property
    def image_names(self) -> list[str]:
        """The image paths, as written in the rows."""
        return json.loads(self.images)

    def note_lines(self) -> Iterator[str]:
        """Yield the notes, one line for each kind, the most frequent notes first."""
        for kind in (LEFT_OUT, NOT_LEARNT, NOT_READ):
            counts = sorted((-count, what) for (of, what), count in self.notes.items() if of == kind)
            shown = [f"{what} ({-count:,} row{'s' * (count < -1)})" for count, what in counts[:SHOWN]]
            if len(counts) > SHOWN:
                shown.append(f"{len(counts) - SHOWN:,} others")
            if shown:
                yield f"{kind}: {', '.join(shown)}"


@dataclass(eq=False)
class Rows:
    """The rows of one data set, read one at a time.

    `images` is the folder that image paths are relative to; `follow_links` lets symbolic links lead out of it. With
    `turns="chained"` a row is one conversation; with `"independent"` its turns share only the image. `surveyed`: what an
    earlier pass over the rows found. `files` hold them, one after another. Raises UserError for another `turns`, and Fault
    on access to a faulty row.
    """

    raw: Sequence[object]
    parse: Parse
    _: KW_ONLY
    images: Path | None = None
    follow_links: bool = False
    turns: str = "chained"
    name: str = "rows"
    surveyed: Survey | None = None
    files: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.turns not in TURNS:
            raise UserError(f"turns: unknown value, got {self.turns!r}{did_you_mean(self.turns, TURNS)}")
        self.survey = self.surveyed or survey_rows(self.raw, self.parse, self.images)
        if len(self.files) > 1:
            faults = (replace(fault, id=fault.id or self._place(fault.row)) for fault in self.survey.faults)
            self.survey = replace(self.survey, faults=tuple(faults))

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Row:
        try:
            value = self.raw[index]
        except (OSError, ValueError, RecursionError, TarError) as error:  # the survey could still read it
            raise Fault(f"not readable any more: {error}") from error
        row = parse_row(value, self.parse, self.images)
        return row if row.id else replace(row, id=self._place(index))

    def _place(self, index: int) -> str:
        """Return the row's number, with its file where there are several: what a row without an id is called."""
        if len(self.files) < 2:
            return str(index)
        file = int(np.searchsorted(self.survey.starts, index, side="right")) - 1
        return f"{self.files[file]} row {index - self.survey.starts[file]}"


class BadRows:
    """The unusable rows of one data set, each once. `allowed` is the share of the rows that may be unusable."""

    def __init__(self, name: str, rows: int, allowed: float) -> None:
        self.name = name
        self.rows = rows
        self.allowed = allowed
        self.unusable: dict[int, Unusable] = {}  # by row number
        self._file: Path | None = None

    @property
    def notes(self) -> list[str]:
        """One line about the unusable rows so far; no line if there are none."""
        if not self.unusable:
            return []
        count = f"{len(self.unusable):,} of {self.rows:,} rows so far"
        first = self.unusable[min(self.unusable)]
        return [f"can't be used (another row stands in): {count}, the first: {first}"]

    def check_sample(self, texts: Iterable[Unusable], sample: Iterable[Unusable], sample_size: int) -> None:
        """Check the share of unusable rows before training.

        `texts` are the unusable rows among the texts of all rows, `sample` those among `sample_size` rows that were
        prepared as for training. Rows that only the sample shows to be unusable are assumed to be as frequent in the
        rest. Raises UserError where the share is too large, or for any single row that is refused.
        """
        share = len(self._add_new(texts)) / self.rows + len(self._add_new(sample)) / sample_size
        judged = f", judged by {sample_size:,} of {self.rows:,}" if sample_size < self.rows else ""
        self._check(share, f"{share:.1%} of the rows can't be used{judged}; nothing was trained")

    def add(self, rows: Iterable[Unusable]) -> None:
        """Add rows that turned out unusable in training. Raises UserError where there are too many by now."""
        if self._add_new(rows):
            listed = f", listed in {self._file}" if self._file else ""
            summary = f"{len(self.unusable):,} of {self.rows:,} rows can't be used{listed}"
            self._check(len(self.unusable) / self.rows, summary)

    def write_to(self, file: Path) -> None:
        """Write the unusable rows to this file, one line each: those so far now, later ones as they are added.

        Rows that the file lists already, from before the run was interrupted, count as unusable.
        """
        lines = [line for line in json_lines(file, missing_ok=True) if line["data"] == self.name]
        listed = {line["row"]: Unusable(line["row"], line["id"], line["fault"]) for line in lines}
        self._file = file
        self._write(row for row in self.unusable.values() if row.row not in listed)
        self.unusable |= {number: row for number, row in listed.items() if number not in self.unusable}

    def _add_new(self, rows: Iterable[Unusable]) -> list[Unusable]:
        """Add the rows that were not known yet, and return these."""
        new = {row.row: row for row in rows if row.row not in self.unusable}
        self.unusable |= new
        self._write(new.values())
        return list(new.values())

    def _write(self, rows: Iterable[Unusable]) -> None:
        lines = [{"data": self.name, "row": r.row, "id": r.id, "fault": r.fault} for r in rows]
        if self._file is not None and lines:
            append_json_lines(self._file, lines)

    def _check(self, share: float, summary: str) -> None:
        rows = sorted(self.unusable.values(), key=lambda row: row.row)
        hint = f"mend or remove these rows: {summary} (max_faults: {self.allowed:.1%})"
        if share <= self.allowed:
            rows = [row for row in rows if row.refused]
            hint = "mend or remove these rows: a path that leaves the image folder is never read"
        if rows:
            rest = [f"... and {len(rows) - NAMED_ROWS} more of {self.rows} rows"] if len(rows) > NAMED_ROWS else []
            raise UserError([f"{self.name}: {row}" for row in rows[:NAMED_ROWS]] + rest, hint=hint)


def survey_rows(raw: Iterable[object], parse: Parse, folder: Path | None) -> Survey:
    """Check the text of every row once, and return sizes, faults and notes. Images are not opened."""
    faults: list[Unusable] = []
    names: dict[str, None] = {}
    notes: Counter[Note] = Counter()

    def facts() -> Iterator[tuple[int, bool, int]]:
        for number, value in enumerate(raw):
            try:
                row = parse_row(value, parse, folder)
            except Fault as fault:
                faults.append(fault.at(number))
                yield 0, False, 0
                continue
            names.update((image, None) for image in row.images if isinstance(image, str))
            for kind, what in (*row.notes, *[PAIRED] * row.paired):
                known = len(notes) < NOTED or (kind, what) in (PAIRED, *notes)
                notes[kind, what if known else "others, counted together"] += 1
            yield row.size, bool(row.images), _digest(row)

    found = np.fromiter(facts(), FACTS)
    sizes, image_mask, digests = (found[name].copy() for name in ("size", "has_image", "digest"))
    return Survey(sizes, image_mask, tuple(faults), json.dumps(list(names)).encode(), notes, digests)


def _digest(row: Row) -> int:
    """Return a number that rows of equal text and image path share; 0 where the image's bytes, not read here, decide."""
    if any(isinstance(image, bytes) for image in row.images):
        return 0
    text = json.dumps([row.system, row.exchanges, row.images])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def parse_row(value: object, parse: Parse, images: Path | None) -> Row:
    """Parse a raw row and check its texts and image paths. Raises Fault.

    An image path must stay inside the image folder; symbolic links are checked when the image is opened.
    """
    row = parse(value)
    text = "".join((row.system or "", *chain.from_iterable(row.exchanges)))
    if len(text) > LONGEST:
        raise Fault(f"{len(text):,} characters of text, {LONGEST:,} are the most", row.id)
    try:
        text.encode()  # JSON may hold lone surrogates
    except UnicodeEncodeError:
        raise Fault("its text holds half a character (a lone surrogate)", row.id) from None
    for image in row.images:
        if isinstance(image, bytes):
            continue
        if images is None:
            raise Fault("has an image, but the data names no `images` folder", row.id)
        if image.startswith("/") or ".." in image or "\\" in image:  # rare: check it closely
            path = Path(image.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise Fault(f"image path leaves its folder: {image}", row.id, refused=True)
    return row


def short_repr(value: object) -> str:
    """Return a row's value as one line for a message, shortened where it is long or deeply nested."""
    return printable(value if isinstance(value, str) else reprlib.repr(value), NAMED)
