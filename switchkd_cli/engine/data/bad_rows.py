"""Unusable rows of a data set: counted, listed in a file, and an error when their share is above `max_faults`."""

from collections.abc import Iterable
from pathlib import Path

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import append_json_lines, json_lines

SHOWN = 5  # rows named in an error; the rest are counted


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
            rest = [f"... and {len(rows) - SHOWN} more of {self.rows} rows"] if len(rows) > SHOWN else []
            raise UserError([f"{self.name}: {row}" for row in rows[:SHOWN]] + rest, hint=hint)
