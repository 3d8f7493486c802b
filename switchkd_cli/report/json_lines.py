"""Read the JSON-lines files of a run."""

import json
from pathlib import Path
from typing import Any


def json_lines(file: Path) -> list[Any]:
    """What each line holds, None where it can't be read."""
    return [_parsed(line) for line in file.read_bytes().splitlines()]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
