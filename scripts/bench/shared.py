"""Level 6: the loss on a shared machine: quickstart's steps, and some tests, alone and next to busy processes.

Next to other processes everything takes longer. What a fair share of the cores explains is taken from the ratio: processes that need
nothing but their core say how much of it is left (`share`), and `over fair` is the ratio of times multiplied by that.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.bench.results import Level, Row, Spread, with_ratios
from scripts.bench.startup import PROGRAM, ROOT, run
from switchkd_cli.distributed.launch_config import cores

BUSY = 8  # processes
ALONE, BESIDE = "alone", f"beside {BUSY} busy processes"
STEPS, TESTS = "quickstart's SFT", "some tests"
FILES = ("tests/losses/test_losses.py", "tests/training/test_objective.py", "tests/models/test_paths.py")
UNTIMED = 5  # steps
LOOP = """
import os, sys, time
os.nice(int(sys.argv[2]))
parent, until = os.getppid(), time.monotonic() + float(sys.argv[1])
while time.monotonic() < until and os.getppid() == parent:
    sum(range(100_000))
print(time.process_time())
"""
HOURS = 1e6  # seconds; they end with the process that started them
LOOKED_AT = 5.0  # seconds in which the share is measured


def measure_level(quick: bool) -> Level:
    return measure_at(steps=15 if quick else 60, rounds=1 if quick else 3, files=FILES[:1] if quick else FILES)


def measure_at(steps: int, rounds: int, files: tuple[str, ...]) -> Level:
    """Measure the level on N timed steps. The tests are left out if pytest is not installed."""
    groups: dict[str, Callable[[], Mapping[str, float]]] = {STEPS: lambda: _steps(steps)}
    if importlib.util.find_spec("xdist") is not None:
        groups[TESTS] = lambda: _tests(files)
    found: list[Row] = []
    for group, measured in groups.items():
        taken: dict[str, list[Mapping[str, float]]] = {ALONE: [], BESIDE: []}
        for number in range(rounds):
            print(f"{group}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for name, count in ((ALONE, 0), (BESIDE, BUSY)):
                with busy(count):
                    taken[name].append({**measured(), "share": share()})
        found += _rows(group, taken)
    setting = {"busy processes": f"{BUSY}, at nice 10", "timed steps": steps, "tests": ", ".join(files)}
    return Level(title="shared: beside other work", setting=setting, rows=found)


def _rows(group: str, taken: Mapping[str, list[Mapping[str, float]]]) -> list[Row]:
    rows = []
    for name, rounds in taken.items():
        figures = {key: statistics.median(each[key] for each in rounds) for key in rounds[0] if key != "seconds"}
        seconds = Spread.of([[each["seconds"]] for each in rounds])
        rows.append(Row(group=group, name=name, seconds=seconds, figures=figures))
    alone, beside = with_ratios(rows)
    left = beside.figures["share"] / alone.figures["share"]
    fair = beside.figures | {"over fair": beside.time_ratio.median * left}
    return [alone, beside.model_copy(update={"figures": fair})]


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run next to N processes that each want a whole core, at low priority (nice)."""
    loops = [subprocess.Popen(_loop(HOURS, nice=10), stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def share() -> float:
    """Return the share of the cores' time that N processes get on N cores."""
    loops = [subprocess.Popen(_loop(LOOKED_AT), stdout=subprocess.PIPE) for _ in range(cores())]
    return statistics.mean(float(loop.communicate()[0]) for loop in loops) / LOOKED_AT


def _loop(seconds: float, nice: int = 0) -> list[str]:
    return [sys.executable, "-c", LOOP, str(seconds), str(nice)]


def _steps(count: int) -> dict[str, float]:
    """Return the seconds of the steps without the first ones, from the program's own log."""
    changes = [f"stages.distill.steps={UNTIMED + count}", "stages.pretrain.steps=1", "evaluation=null"]
    with TemporaryDirectory() as folder:
        run([*PROGRAM, "distill", "recipes/quickstart.yaml", "--row", "sft", *changes, "--out", folder], 0)
        (metrics,) = Path(folder).glob("quickstart/sft/*/metrics.jsonl")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if line.get("stage") == "distill" and "tokens_per_second" in line]
    seconds = steps[-1]["seconds"] - steps[UNTIMED - 1]["seconds"]
    return {"seconds": seconds, "tokens/s": statistics.median(s["tokens_per_second"] for s in steps[UNTIMED:])}


def _tests(files: tuple[str, ...]) -> dict[str, float]:
    """Return the seconds of the tests, run as in `make test`."""
    how = ["-n", str(cores()), "--dist", "loadfile", "--hypothesis-profile=ci", "-m", "not slow"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files, *how],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    return {"seconds": time.perf_counter() - began}
