"""The recipes of this repository."""

import re
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(file for file in RECIPES.rglob("*.yaml") if file.parent.name not in ("worlds", "printed"))


def made_by_others(file):
    """The recipes whose runs the header names under `Needs`."""
    return re.findall(r"runs/(\w+)", re.search(r"^# Needs: .*", file.read_text(encoding="utf-8"), re.MULTILINE)[0])


def widened(file):
    """The sizes of the models that the header makes with scripts/grow.py."""
    return re.findall(r"^#.* runs/grown/(\w+) --width", file.read_text(encoding="utf-8"), re.MULTILINE)
