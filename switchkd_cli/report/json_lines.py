"""Read and write the JSON-lines files of a run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from switchkd_cli.files.atomic import write_text


def json_lines(file: Path) -> list[Any]:
    """What each line holds, None where it can't be read."""
    return [_parsed(line) for line in file.read_bytes().splitlines()]


def write_json_lines(file: Path, values: Iterable[Any]) -> None:
    write_text(file, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
