"""Read and write files of JSON lines."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from switchkd_cli.errors import UTF8
from switchkd_cli.files.atomic import write_text


def json_lines(file: Path, *, missing_ok: bool = False) -> list[Any]:
    """What each line holds, None where it can't be read. With `missing_ok` a file that isn't there has no lines."""
    if missing_ok and not file.is_file():
        return []
    return [_parsed(line) for line in file.read_bytes().splitlines()]


def write_json_lines(file: Path, values: Iterable[Any]) -> None:
    write_text(file, _lines(values))


def append_json_lines(file: Path, values: Iterable[Any]) -> None:
    with file.open("a", **UTF8) as stream:
        stream.write(_lines(values))


def _lines(values: Iterable[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
