"""Read webdataset's shards (.tar) row by row: files of one name before the first dot are one row.

The standard library's tarfile finds the rows, and they are then read in any order. The library webdataset reads shards as
streams, which it shuffles in a buffer: that order could not be repeated by a resumed run.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from switchkd_cli.engine.data.json_file import NotRows, Span
from switchkd_cli.package_data import read_yaml

MEMBERS: Mapping[str, str] = {
    ending: key for key, endings in read_yaml(__file__, "row_forms.yaml")["members"].items() for ending in endings
}
"""The key of a row under which a file of each ending goes."""


def scan(file: Path) -> Iterator[Span]:
    """Yield every row of a shard, with the names of its images in place of them. Raises NotRows, OSError and TarError."""
    with tarfile.open(file, "r:") as tar:
        for _, members in groupby(filter(_is_file, tar), key=lambda member: _split(member.name)[0]):
            group = list(members)
            size = -(-group[-1].size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            try:
                yield group[0].offset, group[-1].offset_data + size, _row(tar, group, with_images=False)
            except ValueError as error:
                raise NotRows(f"{_split(group[0].name)[0]}: {error}") from error


def decode(span: bytes) -> object:
    """Return the row whose files are in this part of a shard. Raises ValueError where they no longer are."""
    try:
        with tarfile.open(fileobj=BytesIO(span), mode="r:") as tar:
            return _row(tar, list(filter(_is_file, tar)))
    except tarfile.TarError as error:
        raise ValueError(error) from error


def _is_file(member: tarfile.TarInfo) -> bool:
    if not (member.isfile() or member.isdir()):
        raise NotRows(f"{member.name}: neither a file nor a folder")
    return member.isfile()


def _split(name: str) -> tuple[str, str]:
    """Return the name before the first dot of its last part, and the ending after the last one."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0], file.rpartition(".")[2].lower() if "." in file else ""


def _row(tar: tarfile.TarFile, members: list[tarfile.TarInfo], *, with_images: bool = True) -> dict[str, Any]:
    row: dict[str, Any] = {}
    images: list[dict] = []
    for member in members:
        ending = _split(member.name)[1]
        key = MEMBERS.get(ending, ending)
        if key == "image":
            images.append({"bytes": _content(tar, member) if with_images else member.name.encode()})
        elif key == "json":
            value = json.loads(_content(tar, member))
            row |= value if isinstance(value, dict) else {"json": value}
        else:
            row[ending if key == "text" else key] = _content(tar, member).decode() if key == "text" else member.name
    names = [name for member in members for name in (member.name, member.name.rpartition("/")[2])]
    for key in ("image", "images") if images else ():
        named = row.pop(key, None) or []  # by its own file's name, or it is another image
        images += [image for image in (named if isinstance(named, list) else [named]) if image not in names]
    return {"id": _split(members[0].name)[0], **row} | ({"images": images} if images else {})


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""
