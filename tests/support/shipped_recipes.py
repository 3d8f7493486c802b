"""The recipes of this repository."""

import re
from dataclasses import replace
from pathlib import Path

from scripts.playground_rows.named_rows import named_rows

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(file for file in RECIPES.rglob("*.yaml") if file.parent.name not in ("worlds", "printed"))


PLAYGROUND = sorted((RECIPES / "playground").glob("*.yaml"))
"""The recipes of the models that ship."""
PACKAGED = sorted(RECIPES.glob("real_vocabulary*.yaml"))
"""Their models come from an optional Python package: tests read them with stand-ins."""


def made_by_others(file):
    """The recipes whose runs the header names under `Needs`."""
    return re.findall(r"runs/(\w+)", re.search(r"^# Needs: .*", file.read_text(encoding="utf-8"), re.MULTILINE)[0])


def widened(file):
    """The sizes of the models that the header makes with scripts/grow.py."""
    return re.findall(r"^#.* runs/grown/(\w+) --width", file.read_text(encoding="utf-8"), re.MULTILINE)


def needs_rows(file):
    """Whether the header says the command that writes the recipe's data files."""
    command = f"python -m scripts.playground_rows {file.relative_to(RECIPES.parent)}"
    return re.search(rf"^#.* {re.escape(command)}$", file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def write_few_rows(file):
    """Write what the header's command writes, if it names one, but of six pictures and two turns each."""
    for rows in named_rows([file] * needs_rows(file)):
        replace(rows, pictures=6, turns=2).write()
