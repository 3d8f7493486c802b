"""Targets, and whether the measurements meet them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import yaml
from pydantic import model_validator

from scripts.bench.results import Bench, Closed, Level

FILE = Path(__file__).with_name("targets.yaml")


class Target(Closed):
    """A limit for a row's quantity, or for its ratio to another row's: at most `most`, or at least `least`."""

    target: str
    level: str
    group: str
    row: str
    over: str | None = None
    quantity: str
    most: float | None = None
    least: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.most is None) == (self.least is None):
            raise ValueError(f"{self.target}: either most or least")
        return self

    @property
    def bound(self) -> str:
        return f"at least {self.least:g}" if self.most is None else f"at most {self.most:g}"

    def met(self, value: float) -> bool:
        return value >= self.least if self.most is None else value <= self.most


class Judged(Closed):
    """A target with its measured value, or None where it was not measured."""

    target: Target
    value: float | None

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.target.met(self.value)


def targets(file: Path = FILE) -> list[Target]:
    return [Target.model_validate(entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8"))]


def judge(bench: Bench, asked: list[Target] | None = None) -> list[Judged]:
    """Return every target, in order."""
    return [
        Judged(target=target, value=_value(target, bench.levels.get(target.level)))
        for target in (targets() if asked is None else asked)
    ]


def _value(target: Target, level: Level | None) -> float | None:
    row = level and level.row(target.group, target.row)
    if not row:
        return None
    value = row.quantity(target.quantity)
    if target.over is None or value is None:
        return value
    other = level.row(target.group, target.over)
    if other is None or not other.quantity(target.quantity):
        return None
    if target.quantity == "seconds":
        return row.seconds.over(other.seconds).median
    return value / other.quantity(target.quantity)
