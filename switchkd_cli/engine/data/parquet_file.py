"""Parquet files as rows: small ones in memory, large ones through the memory-mapped Arrow copy of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq

IN_MEMORY = 1 << 28  # bytes of file up to which no copy is made
BLOCK = 1024  # rows looked at together


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
    """Every row, its encoded pictures left in the file: `b""` stands for each."""
    parquet = pq.ParquetFile(file)
    leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    wanted = [leaf for leaf in leaves if not leaf.endswith(".bytes")]
    embedded = {leaf.split(".")[0] for leaf in leaves if leaf.endswith(".bytes")}
    for block in parquet.iter_batches(BLOCK, columns=wanted):
        for row in block.to_pylist():
            yield row | {name: _stand_in(row.get(name)) for name in embedded}


def _stand_in(image: object) -> object:
    if isinstance(image, list):
        return [_stand_in(one) for one in image]
    return None if image is None else {"bytes": b""}


def _table(file: Path, cache: Path) -> pyarrow.Table:
    if file.stat().st_size <= IN_MEMORY:
        return pq.read_table(file)
    from datasets import Dataset  # over a second to import

    return Dataset.from_parquet(str(file), cache_dir=str(cache)).data.table
