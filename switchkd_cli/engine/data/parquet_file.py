"""Read parquet files row by row: small ones in memory, large ones through a memory-mapped Arrow copy (`datasets`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq

IN_MEMORY = 1 << 28  # bytes; a larger file is copied to Arrow
BLOCK = 1024  # rows read at once
IMAGE_BLOCK = 64  # rows read at once with their encoded images


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
