"""The rows of a data set that can't be used: counted, listed, and past a stated share the end of the run."""

import json
from collections.abc import Iterable
from pathlib import Path

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.errors import UTF8, UserError

SHOWN = 5  # rows named in an error; the rest are counted


class Ledger:
    """One data set's unusable rows, each once, in the order they were met. `allowed` is a share of its rows."""

    def __init__(self, name: str, rows: int, allowed: float) -> None:
        self.name = name
        self.rows = rows
        self.allowed = allowed
        self.met: dict[int, Unusable] = {}
        self._file: Path | None = None

    @property
    def notes(self) -> list[str]:
        """A line on the rows met so far, if there are any."""
        if not self.met:
            return []
        found = f"{len(self.met):,} of {self.rows:,} rows so far"
        return [f"can't be used (another row stands in): {found}, the first: {self.met[min(self.met)]}"]

    def open(self, texts: Iterable[Unusable], seen: Iterable[Unusable], looked_at: int) -> None:
        """Takes what is known before training: of all texts, and of `looked_at` rows seen as training would see them.

        What those rows show beyond their texts is taken to be as frequent in the others. Raises UserError where
        that is too much, or for a single row that is refused.
        """
        share = len(self._take(texts)) / self.rows + len(self._take(seen)) / looked_at
        judged = f", judged by {looked_at:,} of {self.rows:,}" if looked_at < self.rows else ""
        self._check(share, f"{share:.1%} of the rows can't be used{judged}; nothing was trained")

    def add(self, met: Iterable[Unusable]) -> None:
        """Takes rows that were met in training. Raises UserError when they have become too many."""
        if self._take(met):
            listed = f", listed in {self._file}" if self._file else ""
            told = f"{len(self.met):,} of {self.rows:,} rows can't be used{listed}"
            self._check(len(self.met) / self.rows, told)

    def list_in(self, file: Path) -> None:
        """From now on every row is also a line of this file, those met before included.

        Those that stand there, from before the run was interrupted, count as met.
        """
        listed = _listed(file, self.name)
        self._file = file
        self._write(row for row in self.met.values() if row.row not in listed)
        self.met |= {number: row for number, row in listed.items() if number not in self.met}

    def _take(self, rows: Iterable[Unusable]) -> list[Unusable]:
        """Those that are new."""
        new = {row.row: row for row in rows if row.row not in self.met}
        self.met |= new
        self._write(new.values())
        return list(new.values())

    def _write(self, rows: Iterable[Unusable]) -> None:
        rows = list(rows)
        if self._file is None or not rows:
            return
        with self._file.open("a", **UTF8) as stream:
            for r in rows:
                line = {"data": self.name, "row": r.row, "id": r.id, "fault": r.fault}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _check(self, share: float, told: str) -> None:
        rows = sorted(self.met.values(), key=lambda row: row.row)
        hint = f"mend or remove these rows: {told} (max_faults: {self.allowed:.1%})"
        if share <= self.allowed:
            rows = [row for row in rows if row.refused]
            hint = "mend or remove these rows: a path that leaves the image folder is never read"
        if rows:
            rest = [f"... and {len(rows) - SHOWN} more of {self.rows} rows"] if len(rows) > SHOWN else []
            raise UserError([f"{self.name}: {row}" for row in rows[:SHOWN]] + rest, hint=hint)


def _listed(file: Path, name: str) -> dict[int, Unusable]:
    """The rows of a data set that the file lists."""
    if not file.exists():
        return {}
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {
        each["row"]: Unusable(each["row"], each["id"], each["fault"])
        for each in lines
        if each["data"] == name
    }
