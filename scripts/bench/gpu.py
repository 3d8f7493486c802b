"""A GPU day in at most eight minutes: what a CPU can't say, measured once on any CUDA machine. Named only.

    make bench LEVELS=gpu                                       # writes reports/bench_gpu.json
    python -m scripts.bench --show reports/bench_gpu.json

Each part runs in a process of its own (gpu_parts.py) that prints a row as soon as it has it. A part is ended at its limit, and one
that the budget has no time for is not begun: both are rows that say so. Without a GPU everything runs at toy size on the CPU: that
shows that the script runs, its figures mean nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.bench import step
from scripts.bench.gpu_parts import HERE, group
from scripts.bench.results import Level, Row

ROOT = Path(__file__).parents[2]
BUDGET = 480  # seconds
LIMITS = {
    "parity": 50,
    "steps": 80,
    "chunks": 35,
    "compiled": 60,
    "attention": 35,
    "kernels": 25,
    "processes": 25,
    "zero": 40,
    "fsdp": 30,
    "distillation": 300,
}
"""Part -> the seconds after which it is ended, in their order. The last one has what the others leave."""


def measure_level(quick: bool) -> Level:
    return measure_at(tuple(LIMITS), BUDGET / 4 if quick else BUDGET)


def measure_at(parts: Sequence[str], budget: float) -> Level:
    """Run parts one after another within the budget, in seconds."""
    until = time.monotonic() + budget
    rows: list[Row] = []
    for name in parts:
        left = until - time.monotonic()
        limit = min(LIMITS[name], left)
        print(f"{name}: at most {max(limit, 0):.0f} s", file=sys.stderr, flush=True)
        rows += _run_part(name, limit) if limit > 5 else [_left_out(name, f"left out: the budget is {budget:g} s")]
    setting = {"device": HERE, "budget": f"{budget:g} s", "precision": step.precision()}
    return Level(title=f"gpu: {HERE}", setting=setting, rows=rows)


def _run_part(name: str, limit: float) -> list[Row]:
    """Return what a part printed until it ended, or was ended at its limit with all its processes."""
    command = [sys.executable, "-m", "scripts.bench.gpu_parts", name]
    with TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        with out.open("w") as printed, errors.open("w") as told:
            part = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=told, start_new_session=True)
            try:
                code: int | None = part.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if part.poll() is None:
                    os.killpg(part.pid, signal.SIGKILL)
                    part.wait()
        rows = [Row.model_validate_json(line) for line in out.read_text().splitlines() if line.startswith("{")]
        if code is None:
            return [
                *rows,
                _left_out(name, f"{'the rest is ' if rows else ''}left out: over its limit of {limit:.0f} s"),
            ]
        if code:
            lines = [line for line in errors.read_text().splitlines() if line.strip()]
            return [*rows, _left_out(name, f"exit code {code}: {lines[-1] if lines else ''}")]
        return rows


def _left_out(name: str, why: str) -> Row:
    return Row(group=group(name), name=name, failed=why)
