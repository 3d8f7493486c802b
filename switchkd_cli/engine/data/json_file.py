"""Read JSON files of any size row by row. Only the position of each row in the file stays in memory.

A JSON list is decoded by the standard library, one row after another, through a small window. The other decoders that
we tried (orjson, pyarrow, datasets) need several gigabytes of memory for a list of one gigabyte.
"""

import json
import os
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

WINDOW = 1 << 22  # characters read at once
SPACE = re.compile(r"[ \t\r\n]+")

Span = tuple[int, int, object]
"""(begin, end, row): where a row begins and ends in the file, in bytes, and the row."""


class NotRows(ValueError):
    """Raised for a file that is not a list of rows; the message says why."""


def scan(file: Path) -> Iterator[Span]:
    """Yield every row of a JSON list, or of JSON lines where the name ends in .jsonl. Raises NotRows and OSError."""
    return _json_lines(file) if file.suffix == ".jsonl" else _json_list(file)


class JsonFile:
    """Sequence of rows that are read from the file on access; forked and spawned processes may share it."""

    def __init__(self, file: Path, spans: np.ndarray, decode: Callable[[bytes], object] = json.loads) -> None:
        self.file, self.decode = file, decode
        self.spans = spans  # [N, 2] int64: where each row begins and ends, in bytes
        self._open: int | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> object:
        if self._open is None:
            self._open = os.open(self.file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._open)
        begin, end = self.spans[index].tolist()
        return self.decode(os.pread(self._open, end - begin, begin))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}


def _json_lines(file: Path) -> Iterator[Span]:
    begin = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            end = begin + len(line)
            if line.strip():
                try:
                    yield begin, end, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise NotRows(f"not readable as JSON: {_message(error)}, line {number}") from error
            begin = end


def _json_list(file: Path) -> Iterator[Span]:
    """Yield the rows between `[` and `]`."""
    with file.open(encoding="utf-8", newline="") as stream:
        window = _Window(stream)
        if window.next == "\ufeff":
            window.at, window.begin = 1, 3  # a byte order mark
        if window.next != "[":
            _, _, value = window.value()
            lines = " followed by more (JSON lines? then its name must end in .jsonl)" if window.next else ""
            raise NotRows(f"not a JSON list of rows, but a {type(value).__name__}{lines}")
        window.skip()
        while window.next != "]":
            yield window.value()
            if window.next == ",":
                window.skip()
            elif window.next != "]":
                raise window.broken("Expecting ',' delimiter")
        window.skip()
        if window.next:
            raise window.broken("Extra data")


class _Window:
    """The part of a UTF-8 file that is being decoded, and its position in the file."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.parse = json.JSONDecoder().raw_decode
        self.text, self.at, self.begin = "", 0, 0  # begin: bytes of the file before `at`

    @property
    def next(self) -> str:
        """The next character that is no white space, up to which all is skipped; empty at the end of the file."""
        while True:
            if space := SPACE.match(self.text, self.at):
                self.skip(len(space[0]))
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def skip(self, count: int = 1) -> None:
        """Skip characters of one byte."""
        self.at += count
        self.begin += count

    def value(self) -> Span:
        """Decode the JSON value that begins here, and skip it."""
        while True:
            try:
                value, end = self.parse(self.text, self.at)
                break
            except (ValueError, RecursionError) as error:  # also: a number of too many digits; nested too deep
                # near the window's end, or in a string without an end, the value may only need more text
                near_end = getattr(error, "pos", -1) >= len(self.text) - 16
                if not ((near_end or "Unterminated string" in str(error)) and self._more()):
                    raise self.broken(_message(error)) from error
        source = self.text[self.at : end]
        begin, self.at = self.begin, end
        self.begin += len(source) if source.isascii() else len(source.encode())
        return begin, self.begin, value

    def broken(self, why: str) -> NotRows:
        """Return the error for a value here that can't be decoded."""
        return NotRows(f"not readable as JSON: {why}, near byte {self.begin}")

    def _more(self) -> bool:
        """Read the next block; return False at the end of the file."""
        try:
            block = self.stream.read(WINDOW)
        except UnicodeDecodeError as error:
            raise self.broken(_message(error)) from error
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)


def _message(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
