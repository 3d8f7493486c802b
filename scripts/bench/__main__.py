"""python -m scripts.bench [LEVEL ...] [--quick] [--out FILE] [--show FILE]: measure, write the JSON file, show it."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.bench import LEVELS, LONG
from scripts.bench.results import Bench, Level, Machine
from scripts.bench.show import console, show

ROOT = Path(__file__).parents[2]
OUT = Path("reports/bench.json")


def main() -> int:
    asked = _arguments()
    if asked.measure:  # a level in a process of its own
        asked.out.write_text(_measured(asked.measure, asked.quick).model_dump_json())
        return 0
    if asked.show:
        show(Bench.model_validate_json(asked.show.read_text()), console())
        return 0
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for bench in _benches(asked.levels or LEVELS, quick=asked.quick):
        asked.out.write_text(bench.model_dump_json(indent=1) + "\n")
    show(bench, console())
    print(f"\nfile: {asked.out}")
    return int(any(level.failed for level in bench.levels.values()))


def _arguments() -> argparse.Namespace:
    known = (*LEVELS, *LONG)
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description="What distillation costs here.")
    parser.add_argument(
        "levels",
        nargs="*",
        metavar="LEVEL",
        help=f"some of {', '.join(known)}; all but the last {len(LONG)} if none is named",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions: to see that it works")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"the JSON file ({OUT})")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only show a file that was written before")
    parser.add_argument("--measure", choices=(*known, "machine"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := [name for name in asked.levels if name not in known]:
        parser.error(f"no such level: {', '.join(unknown)} (known: {', '.join(known)})")
    if asked.show and not asked.show.is_file():
        parser.error(f"--show: no such file: {asked.show}")
    return asked


def _benches(levels: Sequence[str], *, quick: bool) -> Iterator[Bench]:
    """Yield the benchmark after each level.

    Each level has a process of its own: none finds what another left in memory, and one that fails stops none.
    """
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        if failed := _apart("machine", quick, file):
            sys.exit(failed)
        machine = Machine.model_validate_json(file.read_text())
        found: dict[str, Level] = {}
        for name in levels:
            start = time.monotonic()
            failed = _apart(name, quick, file)
            level = Level(title=name, failed=failed) if failed else Level.model_validate_json(file.read_text())
            found[name] = level.model_copy(update={"took": time.monotonic() - start})
            yield Bench(began=began, quick=quick, machine=machine, levels=dict(found))


def _apart(name: str, quick: bool, file: Path) -> str:
    """Measure in another process that prints to the screen; return how it failed."""
    command = [sys.executable, "-m", "scripts.bench", "--measure", name, "--out", str(file.absolute())]
    quiet = {"KINETO_LOG_LEVEL": "99"} | os.environ  # the profiler tells of each start and stop
    done = subprocess.run([*command, *(["--quick"] if quick else [])], check=False, cwd=ROOT, env=quiet)
    return f"exit code {done.returncode}, see above" if done.returncode else ""


def _measured(name: str, quick: bool) -> Level | Machine:
    if name == "machine":
        return importlib.import_module("scripts.bench.machine").look()
    return importlib.import_module(f"scripts.bench.{name}").measure_level(quick)


if __name__ == "__main__":
    sys.exit(main())
