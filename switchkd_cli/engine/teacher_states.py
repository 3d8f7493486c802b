"""What a frozen model says of a row never changes: its last states, row by row, and kept on disk if asked."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from switchkd_cli.engine.batch import Batch
from switchkd_cli.errors import MACHINE, UserError

PATIENCE = 60.0  # seconds that a write waits for another process's

Understand = Callable[[Batch, Tensor], Tensor]
"""From a batch and the N positions to keep of it, [B, T], to states [N, D]."""


class States:
    """Each row is read by itself, without padding, so that its states don't depend on the rows beside it.

    With a `file`, a row's states are written there once and found again: by this stage's next epoch, by another seed,
    by another row of a table. They are found by a digest of all that the model reads of the row (tokens, turns,
    pixels, positions kept); whose states they are, and what they were computed with, is for the file's name to say.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.found = self.computed = 0  # rows
        self._database = None if file is None else _opened(file)

    def __call__(self, batch: Batch, keep: Tensor, understand: Understand) -> Tensor:
        """States [N, D] of a batch at its N kept positions [B, T], in their order.

        Raises UserError (code MACHINE) where they can't be written.
        """
        parts = list(batch.rows(keep))
        names = [] if self._database is None else [_digest(*part) for part in parts]
        known = self._read(names)
        states, new = [], {}
        for part, name in zip(parts, names or [None] * len(parts), strict=True):
            if name in known:
                states.append(load(known[name])["states"].to(keep.device))
            else:
                states.append(understand(*part))
                new[name] = states[-1]
        self.found, self.computed = self.found + len(parts) - len(new), self.computed + len(new)
        if names:
            self._write({name: save({"states": value.cpu().contiguous()}) for name, value in new.items()})
        return torch.cat(states)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _read(self, names: list[bytes]) -> dict[bytes, bytes]:
        if not names:
            return {}
        asked = ", ".join("?" * len(names))
        with self._explained():
            return dict(self._database.execute(f"select row, states from rows where row in ({asked})", names))

    def _write(self, new: Mapping[bytes, bytes]) -> None:
        """All of a batch's or none: a process that is killed meanwhile leaves what was there."""
        if new:
            with self._explained(), self._database:
                self._database.executemany("insert or ignore into rows values (?, ?)", new.items())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _unusable(self.file, error) from error


def _opened(file: Path) -> sqlite3.Connection:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(file, timeout=PATIENCE)
        database.execute("create table if not exists rows (row blob primary key, states blob not null)")
    except (sqlite3.Error, OSError) as error:
        raise _unusable(file, error) from error
    return database


def _unusable(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file}: the teacher's states can't be kept: {error}",
        hint=f"rm {file}, or set the stage's teacher_states: by_row, which gives the same numbers and keeps nothing",
        code=MACHINE,
    )


def _digest(row: Batch, keep: Tensor) -> bytes:
    """Of all that a model reads of a row, and of where its states are kept."""
    digest = hashlib.blake2b(digest_size=16)
    read = {
        "tokens": row.input_ids,
        "turn": row.turn,
        "image": row.image,
        "picture": row.pictures,
        "keep": keep,
    }
    for name, tensor in read.items():
        if not tensor.numel():  # no picture is no picture, whatever batch it is missing from
            continue
        digest.update(repr((name, tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()
