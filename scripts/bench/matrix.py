"""Level 7, only when it is named: an ablation in the playground as one matrix, against its rows one after another.

It trains and scores every row twice, by the program itself: far longer than the other levels together. After the first row
it says how long the rest will take.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.bench.results import Level, Row, Spread, with_ratios
from scripts.bench.startup import PROGRAM, run

RECIPE, WORLD = "components", "playground"
ROWS = ("switch-kd", "align", "vsd", "sft", "sft-frozen", "align-frozen")
FEW = ("switch-kd", "align", "sft")
TOGETHER, APART = "as one matrix", "rows one after another"


def measure_level(quick: bool) -> Level:
    return measure_at(FEW if quick else ROWS, steps=10 if quick else 60, items=4 if quick else 40)


def measure_at(rows: tuple[str, ...], steps: int, items: int) -> Level:
    """Measure the level on a few steps of each stage. Rows one after another start from scratch: each has its own folder."""
    changes = shorter(steps, items)
    with TemporaryDirectory() as folder:
        apart = 0.0
        for number, row in enumerate(rows, 1):
            apart += _ablated([row], changes, Path(folder) / row, "--jobs", "1")
            left = (2 * len(rows) - number) * apart / number / 60
            print(f"matrix: {number} of {len(rows)} rows apart; at most {left:.0f} minutes left", file=sys.stderr)
        together = _ablated(rows, changes, Path(folder) / "together")
    seconds = {APART: apart, TOGETHER: together}
    found = [
        Row(group="matrix", name=name, seconds=Spread.of([[value]]), figures={"rows/h": len(rows) / value * 3600})
        for name, value in seconds.items()
    ]
    setting = {"rows": ", ".join(rows), "steps of a stage": steps, "items of a benchmark": items}
    title = "matrix: rows of an ablation trained and scored, once each"
    return Level(title=title, setting=setting, rows=with_ratios(found))


def shorter(steps: int, items: int) -> list[str]:
    """Return the overrides that make the recipe shorter."""
    return [*(f"stages.{stage}.steps={steps}" for stage in ("pretrain", "distill")), f"evaluation.items={items}"]


def _ablated(rows: list[str] | tuple[str, ...], changes: list[str], out: Path, *how: str) -> float:
    """Return the seconds that it took."""
    asked = ["--world", WORLD, "--rows", ",".join(rows), "--out", str(out), *how]
    began = time.perf_counter()
    run([*PROGRAM, "ablate", RECIPE, *changes, *asked], 0)
    return time.perf_counter() - began
