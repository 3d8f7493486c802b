"""JSON files of any size as rows: where each row lies in the file is kept, the rows themselves are not.

A JSON list is read by the standard library's own decoder, one row after another through a small window: no decoder
that was looked at (orjson, pyarrow, datasets) reads a list of a gigabyte without holding several in memory.
"""

from __future__ import annotations

import codecs
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WINDOW = 1 << 22  # bytes read at once
SPACE = " \t\r\n"

Span = tuple[int, int, object]
"""Where a row begins and ends in the file, in bytes, and the row."""


class NotRows(ValueError):
    """The file is no list of rows; the text says why."""


def scan(file: Path) -> Iterator[Span]:
    """Every row of a JSON list or, for a name that ends in `l`, of JSON lines. Raises NotRows and OSError."""
    return _lines(file) if file.suffix == ".jsonl" else _listed(file)


class JsonFile:
    """Rows by number, read from the file when they are asked for; forked and spawned processes may share it."""

    def __init__(self, file: Path, begins: np.ndarray, ends: np.ndarray) -> None:
        self.file = file
        self.begins = begins  # [N] int64
        self.ends = ends  # [N] int64
        self._open: int | None = None

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> object:
        if self._open is None:
            self._open = os.open(self.file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._open)
        begin, end = int(self.begins[index]), int(self.ends[index])
        return json.loads(os.pread(self._open, end - begin, begin))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}


def _lines(file: Path) -> Iterator[Span]:
    begin = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            end = begin + len(line)
            if line.strip():
                try:
                    yield begin, end, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise NotRows(f"not readable as JSON: {_told(error)}, line {number}") from error
            begin = end


def _listed(file: Path) -> Iterator[Span]:
    """Rows between `[` and `]`."""
    with file.open("rb") as stream:
        window = _Window(stream)
        window.skip(SPACE + "\ufeff")
        if window.here != "[":
            raise NotRows(_other(window))
        window.take()
        window.skip(SPACE)
        while window.here != "]":
            yield window.value()
            window.skip(SPACE)
            if window.here == "]":
                break
            if window.here != ",":
                raise window.broken("Expecting ',' delimiter")
            window.take()
            window.skip(SPACE)
        window.take()
        window.skip(SPACE)
        if window.here:
            raise window.broken("Extra data")


def _other(window: _Window) -> str:
    """What a file holds that is not a list."""
    _, _, value = window.value()
    window.skip(SPACE)
    lines = " followed by more (JSON lines? then its name must end in .jsonl)" if window.here else ""
    return f"not a JSON list of rows, but a {type(value).__name__}{lines}"


class _Window:
    """The part of a UTF-8 file that is being decoded, and where it lies."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.parse = json.JSONDecoder().raw_decode
        self.text, self.at, self.begin, self.done = "", 0, 0, False  # begin: bytes of the file before `at`

    @property
    def here(self) -> str:
        """The next character; nothing at the end of the file."""
        while self.at == len(self.text) and self._more():
            pass
        return self.text[self.at : self.at + 1]

    def skip(self, characters: str) -> None:
        while (character := self.here) and character in characters:
            self.take(len(character.encode()))

    def take(self, size: int = 1) -> None:
        """Steps over one character of `size` bytes."""
        self.at += 1
        self.begin += size

    def value(self) -> Span:
        """The JSON value that begins here, and steps over it."""
        while True:
            try:
                value, end = self.parse(self.text, self.at)
                break
            except json.JSONDecodeError as error:
                # near the end, or in a string that has no end yet, more text may mend it
                cut = error.pos >= len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if not (cut and self._more()):
                    raise self.broken(error.msg) from error
            except (
                RecursionError,
                ValueError,
            ) as error:  # too deep; a number of more digits than Python reads
                raise self.broken(_told(error)) from error
        read = self.text[self.at : end]
        begin, self.at = self.begin, end
        self.begin += len(read) if read.isascii() else len(read.encode())
        return begin, self.begin, value

    def broken(self, why: str) -> NotRows:
        return NotRows(f"not readable as JSON: {why}, near byte {self.begin}")

    def _more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self.done:
            return False
        block = self.stream.read(WINDOW)
        self.done = not block
        try:
            self.text = self.text[self.at :] + self.decode(block, final=self.done)
        except UnicodeDecodeError as error:
            raise self.broken(_told(error)) from error
        self.at = 0
        return True


def _told(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
