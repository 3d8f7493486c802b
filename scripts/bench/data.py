"""Level 3: images per second that the loader gives and that a step takes, and the share of waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from scripts.bench.machine import device
from scripts.bench.pairs import MIDDLING, SMALL, Size, build
from scripts.bench.results import Level, Row
from scripts.bench.rounds import LONG, QUICK, Effort, Running, Variant, measure, uncounted
from scripts.bench.step import TERMS, trainer_of
from switchkd_cli.distributed.launch_config import cores
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.data_loader import MAX_WORKERS, make_loader, next_micro_batches
from switchkd_cli.recipe.schema import Stage

STARTED = "with the start of the loader's processes, which a stage has once; images/s without"
PICTURE = (640, 480)  # pixels, like most of COCO's
TEXT = ("What is in the picture?", "a dog and two red apples on a table")
ALONE, BESIDE = "loader alone", "loader and steps"
METHODS = {"SFT": ("ce",), "Switch-KD": ("ce", "align", "vsd")}


def measure_level(quick: bool) -> Level:
    """Measure with the fastest steps, which need the most images; the middling pair's are fast only on a GPU."""
    sizes = [SMALL, MIDDLING] if torch.cuda.is_available() and not quick else [SMALL]
    return measure_at(sizes, 64 if quick else 256, QUICK if quick else LONG)


def measure_at(sizes: list[Size], rows: int, effort: Effort) -> Level:
    """Measure the level on N rows, each with its own JPEG file."""
    found: list[Row] = []
    with TemporaryDirectory() as folder:
        write(Path(folder), rows)
        for size in sizes:
            paths = build(size, device())
            found += _of_size(size, paths, Path(folder), rows, effort)
    setting = {"rows": rows, "pictures": f"{PICTURE[0]} x {PICTURE[1]} JPEG", "workers": workers(), "time": STARTED}
    return Level(title="data: the loader beside the steps", setting=setting, rows=found)


def workers() -> int:
    """Return the default number of processes that prepare a data set too large for memory on this machine."""
    return max(1, min(MAX_WORKERS, cores() - 1))


def write(folder: Path, rows: int) -> None:
    """Write images with as much detail as a photograph, and their rows."""
    draw = np.random.default_rng(0)
    entries = []
    for number in range(rows):
        coarse = Image.fromarray(draw.integers(0, 255, (24, 32, 3), np.uint8)).resize(PICTURE, Image.BICUBIC)
        grain = draw.normal(0, 8, (*PICTURE[::-1], 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        name = f"{number}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=90)
        said = [{"from": "human", "value": f"<image>\n{TEXT[0]}"}, {"from": "gpt", "value": TEXT[1]}]
        entries.append({"id": str(number), "image": name, "conversations": said})
    (folder / "rows.json").write_text(json.dumps(entries))


def _of_size(size: Size, paths: Paths, folder: Path, rows: int, effort: Effort) -> list[Row]:
    counts = {"in the training's process": 0, f"in {workers()} of its own": workers()}
    alone = [Variant(label, partial(_loading, size, paths, folder, rows, count)) for label, count in counts.items()]
    beside = [
        Variant(f"{method}, {label}", partial(_training, size, paths, folder, rows, count, method))
        for method in METHODS
        for label, count in counts.items()
    ]
    pair = f"{size.name} pair"
    return measure(f"{ALONE}, {pair}", alone, effort) + measure(f"{BESIDE}, {pair}", beside, effort)


def _stage(size: Size, count: int, method: str = "SFT") -> Stage:
    plain = {"name": "bench", "data": "rows", "train": ("vision", "projector", "language"), "lr": 1e-9}
    fields = {"batch": size.rows, "workers": count, "steps": 10**6}
    return Stage.model_validate(plain | fields | {"objective": tuple(TERMS[name] for name in METHODS[method])})


def _batches(stage: Stage, paths: Paths, folder: Path, rows: int) -> Iterator:
    """Yield one pass over examples that were not prepared before."""
    read = llava_json(folder, file=str(folder / "rows.json"), images=str(folder))
    data = Conversations(read, paths.student.inputs)
    return make_loader(stage, paths.student, data, range(rows), stage.batch)


@contextmanager
def _loading(size: Size, paths: Paths, folder: Path, rows: int, count: int) -> Iterator[Running]:
    stage, clock = _stage(size, count), {}

    def one_pass() -> None:
        began = time.perf_counter()
        for _ in _batches(stage, paths, folder, rows):
            pass
        clock["seconds"] = time.perf_counter() - began

    yield Running({"pass": one_pass}, figures=lambda: {"images/s": rows / clock["seconds"]}, peak=uncounted)


@contextmanager
def _training(size: Size, paths: Paths, folder: Path, rows: int, count: int, method: str) -> Iterator[Running]:
    stage, clock = _stage(size, count, method), {}
    with TemporaryDirectory() as logs, closing(trainer_of(stage, paths, logs)) as trainer:

        def one_pass() -> None:
            """Time the waiting for data and the steps, as in engine/training/loop.py."""
            batches = _batches(stage, paths, folder, rows)
            trainer.step(
                next_micro_batches(batches, 1), diagnosed=False
            )  # workers start once per stage, so no step waits for that
            waited, began = 0.0, time.perf_counter()
            for _ in range(rows // stage.batch - 1):
                asked = time.perf_counter()
                group = next_micro_batches(batches, 1)
                waited += time.perf_counter() - asked
                trainer.step(group, diagnosed=False)
            clock.update(waited=waited, all=time.perf_counter() - began)

        pictures = (rows // stage.batch - 1) * stage.batch
        yield Running({"pass": one_pass}, figures=lambda: _figures(clock, pictures), peak=uncounted)


def _figures(clock: dict[str, float], pictures: int) -> dict[str, float]:
    """Return the figures; a step's demand is what it would take if it never waited."""
    return {
        "images/s": pictures / clock["all"],
        "appetite, images/s": pictures / (clock["all"] - clock["waited"]),
        "waiting": clock["waited"] / clock["all"],
    }
