"""Read webdataset's shards (.tar) row by row: files of one name before the first dot are one row.

The standard library's tarfile finds the rows, and they are then read in any order. The library webdataset reads shards as
streams, which it shuffles in a buffer: that order could not be repeated by a resumed run.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby
from os.path import basename, splitext
from pathlib import Path
from typing import Any

from PIL import Image

from switchkd_cli.engine.data.image import FORMATS
from switchkd_cli.engine.data.json_file import NotRows, Span

IMAGES = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
TEXTS = (".txt", ".cls")


def scan(file: Path) -> Iterator[Span]:
    """Yield every row of a shard, with the names of its images in place of them. Raises NotRows, OSError and TarError."""
    with tarfile.open(file, "r:") as tar:
        for key, members in groupby(filter(_is_file, tar), key=_key):
            group = list(members)
            size = -(-group[-1].size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            try:
                yield group[0].offset, group[-1].offset_data + size, _row(tar, group, with_images=False)
            except ValueError as error:
                raise NotRows(f"{key}: {error}") from error


def decode(span: bytes) -> object:
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
    images: list[Any] = []
    for member in members:
        stream, ending = tar.extractfile(member) or BytesIO(), splitext(member.name)[1].lower()
        if ending in IMAGES:
            images.append({"bytes": stream.read() if with_images else member.name.encode()})
        elif ending == ".json":
            value = json.load(stream)
            row |= value if isinstance(value, dict) else {"json": value}
        else:
            row[member.name[len(key) + 1 :].lower()] = stream.read().decode() if ending in TEXTS else member.name
    names = [basename(member.name) for member in members]
    for listed in ("image", "images") if images else ():
        named = row.pop(listed, None) or []  # the shard's own file by its name, or it is another image
        images += [one for one in (named if isinstance(named, list) else [named]) if basename(str(one)) not in names]
    return row | ({"images": images} if images else {})
