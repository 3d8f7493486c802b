"""Parquet files as rows: small ones in memory, large ones through the memory-mapped Arrow copy of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq

IN_MEMORY = 1 << 28  # bytes of file up to which no copy is made
BLOCK = 1024  # rows looked at together
FEW = 64  # the same with their encoded pictures


class ParquetFile:
    """Rows by number; forked and spawned processes open the file for themselves."""

    def __init__(self, file: Path, cache: Path, rows: int) -> None:
        self.file = file
        self.cache = cache
        self.rows = rows
        self._table: pyarrow.Table | None = None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> object:
        if self._table is None:
            self._table = _table(self.file, self.cache)
        return self._table.slice(index, 1).to_pylist()[0]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_table": None}


def texts(file: Path) -> Iterator[object]:
    """Every row, its encoded pictures left in the file: `b""` stands for each.

    Only where a group of rows says that some of its images have none are that group's bytes read.
    """
    parquet = pq.ParquetFile(file)
    leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    encoded = {i: leaf.split(".")[0] for i, leaf in enumerate(leaves) if _of_an_image(leaf)}
    wanted = [leaf for i, leaf in enumerate(leaves) if i not in encoded]
    beside = {i: [leaf for leaf in wanted if leaf.startswith(f"{name}.")][:1] for i, name in encoded.items()}

    def lacking(group: int) -> bool:
        return not all(_all_have_bytes(parquet, group, i, named) for i, named in beside.items())

    for whole, groups in groupby(range(parquet.num_row_groups), key=lacking):
        size, columns = (FEW, leaves) if whole else (BLOCK, wanted)
        for block in parquet.iter_batches(size, row_groups=list(groups), columns=columns):
            for row in block.to_pylist():
                yield row | {name: _stand_in(row.get(name), whole) for name in encoded.values()}


def _of_an_image(leaf: str) -> bool:
    """Whether a column holds the bytes of `{bytes, path}`, or of a list of these."""
    return leaf.endswith(".bytes") and set(leaf.split(".")[1:-1]) <= {"list", "element", "item", "array"}


def _all_have_bytes(parquet: pq.ParquetFile, group: int, column: int, beside: list[str]) -> bool:
    """Whether, as its statistics say, no image of the group lacks its bytes: all nulls are rows without images."""
    found = parquet.metadata.row_group(group).column(column).statistics
    if not beside or found is None or not found.has_null_count:
        return False
    blocks = parquet.iter_batches(BLOCK, row_groups=[group], columns=beside) if found.null_count else ()
    return found.null_count == sum(_without(image) for b in blocks for image in b.column(0).to_pylist())


def _without(image: object) -> int:
    """How many nulls a row without an image, or a list of images, has in the column of bytes."""
    if isinstance(image, list):
        return sum(map(_without, image)) if image else 1
    return int(image is None)


def _stand_in(image: object, whole: bool) -> object:
    if isinstance(image, list):
        return [_stand_in(one, whole) for one in image]
    if not isinstance(image, dict) or (whole and image["bytes"] is None):
        return image
    return {"bytes": b""}


def _table(file: Path, cache: Path) -> pyarrow.Table:
    if file.stat().st_size <= IN_MEMORY:
        return pq.read_table(file)
    from datasets import Dataset  # over a second to import

    return Dataset.from_parquet(str(file), cache_dir=str(cache)).data.table
