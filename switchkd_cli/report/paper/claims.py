"""The paper's findings: which row lies above which. They are listed in claims.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from switchkd_cli.report.tables.columns import AVERAGE


@dataclass(frozen=True)
class Finding:
    """`ours` lies above `theirs`, by `printed` points if the paper says by how much."""

    claim: str
    tag: Literal["S", "C", "I", "T"]
    source: str
    recipes: tuple[str, ...]
    """Where it can be tested; the first of them that a report holds is taken."""
    ours: str
    theirs: str
    printed: float | None
    benchmark: str = AVERAGE
    alike: bool = False
    """Whether the claim is that the two rows are as good as one another."""


_listed = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
FINDINGS = tuple(Finding(**entry | {"recipes": tuple(entry["recipes"])}) for entry in _listed)
