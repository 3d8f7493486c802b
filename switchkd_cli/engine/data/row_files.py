"""Read files of any size row by row: JSON, JSON lines, parquet, and webdataset's shards (.tar).

Of JSON and shards only the position of each row in the file stays in memory. Small parquet files are in memory, large ones
are read through a memory-mapped Arrow copy (`datasets`).

A JSON list is decoded by the standard library, one row after another, through a small window. The other decoders that
we tried (orjson, pyarrow, datasets) need several gigabytes of memory for a list of one gigabyte.

In a shard, files of one name before the first dot are one row. The standard library's tarfile finds the rows, and they are
then read in any order. The library webdataset reads shards as streams, which it shuffles in a buffer: that order could not be
repeated by a resumed run.
"""

import json
import os
import re
import tarfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import groupby
from os.path import basename, splitext
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow
import pyarrow.parquet as pq
from PIL import Image

from switchkd_cli.engine.data.image import FORMATS

WINDOW = 1 << 22  # characters read at once
SPACE = re.compile(r"[ \t\r\n]+")
IN_MEMORY = 1 << 28  # bytes; a larger file is copied to Arrow
BLOCK = 1024  # rows read at once
IMAGE_BLOCK = 64  # rows read at once with their encoded images
IMAGES = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
TEXTS = (".txt", ".cls")

Span = tuple[int, int, object]
"""(begin, end, row): where a row begins and ends in the file, in bytes, and the row."""


class NotRows(ValueError):
    """Raised for a file that is not a list of rows; the message says why."""


def scan(file: Path) -> Iterator[Span]:
    """Yield every row, and where it is: without its encoded images in parquet and shards, in parquet without its place.

    The ending of the file's name says what it is. Raises NotRows, OSError, TarError, and pyarrow's errors.
    """
    if file.suffix == ".parquet":
        return ((0, 0, row) for row in text_rows(file))
    return {".jsonl": _json_lines, ".tar": _shard}.get(file.suffix, _json_list)(file)


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


@dataclass(eq=False)
class ParquetFile:
    """Sequence of rows; each forked or spawned process opens the file itself."""

    file: Path
    cache: Path
    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> object:
        return self._table.slice(index, 1).to_pylist()[0]

    @cached_property
    def _table(self) -> pyarrow.Table:
        if self.file.stat().st_size <= IN_MEMORY:
            return pq.read_table(self.file)
        from datasets import Dataset  # over a second to import

        return Dataset.from_parquet(str(self.file), cache_dir=str(self.cache)).data.table

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}


def text_rows(file: Path) -> Iterator[object]:
    """Yield every row with `b""` in place of each encoded image, which is not read.

    A row group's images are read only where its statistics say that some of them have no bytes.
    """
    parquet = pq.ParquetFile(file)
    leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    encoded = {i: leaf.split(".")[0] for i, leaf in enumerate(leaves) if _is_image_bytes(leaf)}
    text_leaves = [leaf for i, leaf in enumerate(leaves) if i not in encoded]
    siblings = {i: [leaf for leaf in text_leaves if leaf.startswith(f"{name}.")][:1] for i, name in encoded.items()}

    def lacks_bytes(group: int) -> bool:
        return not all(_all_have_bytes(parquet, group, i, names) for i, names in siblings.items())

    for with_images, groups in groupby(range(parquet.num_row_groups), key=lacks_bytes):
        size, columns = (IMAGE_BLOCK, leaves) if with_images else (BLOCK, text_leaves)
        for block in parquet.iter_batches(size, row_groups=list(groups), columns=columns):
            for row in block.to_pylist():
                yield row | {name: _without_bytes(row.get(name), with_images) for name in encoded.values()}


def _is_image_bytes(leaf: str) -> bool:
    """Whether a column holds the `bytes` of an image `{bytes, path}`, or of a list of images."""
    return leaf.endswith(".bytes") and set(leaf.split(".")[1:-1]) <= {"list", "element", "item", "array"}


def _all_have_bytes(parquet: pq.ParquetFile, group: int, column: int, siblings: list[str]) -> bool:
    """Whether every image of a row group has bytes, by its statistics: each null belongs to a row without images."""
    statistics = parquet.metadata.row_group(group).column(column).statistics
    if not siblings or statistics is None or not statistics.has_null_count:
        return False
    blocks = parquet.iter_batches(BLOCK, row_groups=[group], columns=siblings) if statistics.null_count else ()
    images = (image for block in blocks for image in block.column(0).to_pylist())
    return statistics.null_count == sum(map(_nulls_without_image, images))


def _nulls_without_image(image: object) -> int:
    """Count the nulls in the column of bytes that come from absent images, not from images without bytes."""
    if isinstance(image, list):
        return sum(map(_nulls_without_image, image)) if image else 1
    return int(image is None)


def _without_bytes(image: object, with_images: bool) -> object:
    """Return the image with empty bytes; as it is where `with_images` shows that it has none."""
    if isinstance(image, list):
        return [_without_bytes(one, with_images) for one in image]
    if not isinstance(image, dict) or (with_images and image["bytes"] is None):
        return image
    return {"bytes": b""}


def _shard(file: Path) -> Iterator[Span]:
    """Yield every row of a shard, with the names of its images in place of them."""
    with tarfile.open(file, "r:") as tar:
        for key, members in groupby(filter(_is_file, tar), key=_key):
            group = list(members)
            size = -(-group[-1].size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            try:
                yield group[0].offset, group[-1].offset_data + size, _row(tar, group, with_images=False)
            except ValueError as error:
                raise NotRows(f"{key}: {error}") from error


def shard_row(span: bytes) -> object:
    """Return the row whose files are in this part of a shard. Raises ValueError and TarError where they no longer are."""
    with tarfile.open(fileobj=BytesIO(span), mode="r:") as tar:
        return _row(tar, list(filter(_is_file, tar)))


def _is_file(member: tarfile.TarInfo) -> bool:
    if not (member.isfile() or member.isdir()):
        raise NotRows(f"{member.name}: neither a file nor a folder")
    return member.isfile()


def _key(member: tarfile.TarInfo) -> str:
    """Return what a row's files have in common: the name before the first dot of its last part."""
    folder, slash, file = member.name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _row(tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], *, with_images: bool = True) -> dict[str, Any]:
    key = _key(members[0])
    row: dict[str, Any] = {"id": key}
    images: dict[str, Any] = {}
    for member in members:
        stream, ending = tar.extractfile(member) or BytesIO(), splitext(member.name)[1].lower()
        if ending in IMAGES:
            images[basename(member.name)] = {"bytes": stream.read() if with_images else member.name.encode()}
        elif ending == ".json":
            value = json.load(stream)
            row |= value if isinstance(value, dict) else {"json": value}
        else:
            row[member.name[len(key) + 1 :].lower()] = stream.read().decode() if ending in TEXTS else member.name
    if not images:
        return row
    listed = [row.pop(key, None) or [] for key in ("image", "images")]
    names = [one for named in listed for one in (named if isinstance(named, list) else [named])]
    others = [image for name, image in images.items() if name not in {basename(str(one)) for one in names}]
    # the shard's own file by its name, or it is another image
    return row | {"images": [*(images.get(basename(str(one)), one) for one in names), *others]}
