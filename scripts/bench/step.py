"""Level 2: what a training step costs, as a ratio to plain fine-tuning and to the operations that it needs at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from scripts.bench.allocated import bytes_of
from scripts.bench.explicit_pairs import dbild_of_pairs, of_sorted_rows
from scripts.bench.machine import device, free_bytes, peak_flops
from scripts.bench.pairs import MIDDLING, SMALL, Size, batch, build, paper
from scripts.bench.results import Level
from scripts.bench.results import Row as Measured
from scripts.bench.rounds import FULL, QUICK, Effort, Running, Variant, measure
from scripts.bench.three_forwards import Loss, ThreeForwards
from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Models
from switchkd_cli.engine.losses.dbild import dbild
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.recipe.schema import Stage

GIB = 2**30
TERMS = {
    "ce": {"name": "ce", "loss": "cross_entropy"},
    "kd": {"name": "kd", "loss": "forward_kl", "to": "teacher"},
    "align": {"name": "align", "loss": "dbild", "to": "teacher"},
    "vsd": {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"},
}
TERMS |= {f"{name} in 64": TERMS[name] | {"parameters": {"window": 64}} for name in ("align", "vsd")}
TERMS["vsd at the switch gap"] = TERMS["vsd"] | {"focus": {"by": "switch_gap", "share": 0.2}}
TERMS |= {f"{name} in a window": TERMS[name] | {"parameters": {"window": 256}} for name in ("align", "vsd")}
SWITCH = ("ce", "align", "vsd")
WINDOW = ("ce", "align in a window", "vsd in a window")
TEACHER = frozenset({"teacher"})


@dataclass(frozen=True)
class Row:
    """A way of training: its terms, the stage's fields that it sets, and what takes the step.

    `naive`: three whole forward passes, with this way of computing DBiLD; none: the package's step.
    `spared`: paths that it does without, so that its floor is lower.
    """

    name: str
    terms: tuple[str, ...]
    stage: Mapping[str, Any] = field(default_factory=dict)
    naive: Loss | None = None
    spared: frozenset[str] = frozenset()


ROWS = (
    Row("SFT", ("ce",)),
    Row("logit KD", ("ce", "kd")),
    Row("Switch-KD, naive", SWITCH, naive=dbild),
    Row("Switch-KD, ours", SWITCH),
    Row("Switch-KD, ours, focus on the switch gap", ("ce", "align", "vsd at the switch gap")),
    Row("Switch-KD, ours, switch pass recomputed", SWITCH, {"activation_checkpointing": ("switch",)}),
    Row("Switch-KD, ours, activation checkpointing", SWITCH, {"activation_checkpointing": True}),
    Row("Switch-KD, ours, teacher row by row", SWITCH, {"teacher_states": "by_row"}),
    Row("Switch-KD, ours, teacher's states kept", SWITCH, {"teacher_states": "cached"}, spared=TEACHER),
    Row("window 256, naive, its loss too", WINDOW, naive=partial(dbild_of_pairs, highest=of_sorted_rows)),
    Row("window 256, ours", WINDOW),
)
"""The first is the yardstick. A new recipe field is one more line, with the stage's fields that it sets."""


def measure_level(quick: bool) -> Level:
    sizes = [SMALL] if quick else [SMALL, MIDDLING]
    if torch.cuda.is_available() and not quick:
        sizes.append(paper("3B" if free_bytes() > 70 * GIB else "1.5B"))
    return measure_at(sizes, QUICK if quick else FULL)


def measure_at(sizes: list[Size], effort: Effort) -> Level:
    """Measure the level for given pairs of models, one after another."""
    level = Level(title="step: one optimiser step", setting={"precision": precision()})
    for size in sizes:
        rows, setting = _of_size(size, effort)
        level = level.model_copy(
            update={"rows": level.rows + rows, "setting": level.setting | {f"{size.name} pair": setting}}
        )
    return level


def _of_size(size: Size, effort: Effort) -> tuple[list[Measured], str]:
    where = device()
    paths = build(size, where)
    given = batch(size, paths, where)
    variants = [Variant(row.name, partial(stepping, paths, given, row)) for row in ROWS]
    rows = measure(f"{size.name} pair", variants, effort)
    floors = {row.name: floor(paths, given, row) for row in ROWS}
    measured = [_with_figures(row, rows[0], floors, given) for row in rows]
    return measured, sizes_of(paths, given)


def sizes_of(paths: Paths, given: Batch) -> str:
    """Return the sizes of a pair and its batch in words."""
    student, teacher = (sum(p.numel() for p in model.parameters()) / 1e6 for model in (paths.student, paths.teacher))
    count, length = given.input_ids.shape
    kept = int(given.predicting("answer").sum())
    models = f"student {student:,.1f} M, teacher {teacher:,.1f} M parameters"
    batched = f"{count} rows of {length} tokens, {kept} supervised, vocabulary {paths.vocabulary:,}"
    return f"{models}; {batched}"


def stage_of(row: Row, rows: int) -> Stage:
    """Return the stage of such steps; its rate is so low that the weights, and so the work, stay the same."""
    plain = {"name": "bench", "data": "none", "train": ("vision", "projector", "language"), "lr": 1e-9}
    fields = {"batch": rows, "steps": 10**6, "objective": tuple(TERMS[name] for name in row.terms)}
    return Stage.model_validate(plain | fields | dict(row.stage))


@contextmanager
def stepping(paths: Paths, given: Batch, row: Row) -> Iterator[Running]:
    """Yield a row's steps on one batch. All rows share the models, but each has its own optimiser state."""
    stage = stage_of(row, len(given.ids))
    try:
        way = _package if row.naive is None else partial(_naive, loss=row.naive)
        with way(paths, stage) as (step, adamw):
            yield Running({"step": lambda: step(given)}, alive=partial(_alive, paths, adamw))
    finally:
        paths.student.zero_grad()  # of a step that ran out of memory


def floor(paths: Paths, given: Batch, row: Row) -> float:
    """Return the operations that every way of computing a step's terms needs (engine/cost/flops.py)."""
    stage = stage_of(row, len(given.ids))
    count, length = given.input_ids.shape
    micro_batch = MicroBatch(count, len(given.images), length, int(given.predicting("answer").sum()))
    both = {"student": paths.student, **paths.frozen}
    models = Models({name: ModelShape(model) for name, model in both.items()}, paths.vocabulary)
    needed = frozenset(path for name, path in stage.readings.items() if name not in row.spared)
    return flops.step(micro_batch, Computation(models, needed, frozenset(stage.train)))


Stepping = tuple[Callable[[Batch], object], torch.optim.Optimizer]


@contextmanager
def _package(paths: Paths, stage: Stage) -> Iterator[Stepping]:
    with TemporaryDirectory() as folder, closing(trainer_of(stage, paths, folder)) as trainer:
        yield partial(_taken, trainer), trainer.replica.adamw


def _taken(trainer: Trainer, given: Batch) -> dict[str, float]:
    """Return a step's figures. Raises FloatingPointError if it changed no weight: such a step would cost less."""
    figures, broken = trainer.step([given], diagnosed=False)
    if broken:
        raise FloatingPointError(f"a step came to no number: {broken}")
    return figures


def trainer_of(stage: Stage, paths: Paths, logs: str) -> Trainer:
    return Trainer(stage, paths, stage.steps, precision(), states=Path(logs) / "states.sqlite")


@contextmanager
def _naive(paths: Paths, stage: Stage, loss: Loss, way: type[ThreeForwards] = ThreeForwards) -> Iterator[Stepping]:
    paths.train()
    cast = torch.autocast(device().type, torch.bfloat16, enabled=precision() == "bf16")
    three = way(paths, stage, cast, loss)
    yield three.step, three.adamw


def precision() -> str:
    return "bf16" if torch.cuda.is_available() else "fp32"


def _alive(paths: Paths, adamw: torch.optim.Optimizer) -> int:
    """Return the bytes of both models' weights and of the optimiser's states."""
    moments = [value for kept in adamw.state.values() for value in kept.values() if torch.is_tensor(value)]
    return bytes_of([*paths.student.parameters(), *paths.teacher.parameters(), *moments])


def _with_figures(row: Measured, first: Measured, floors: Mapping[str, float], given: Batch) -> Measured:
    """Return the row with tokens per second, operations, their ratio to the yardstick's, the time above that, and MFU if a peak is known."""
    if row.seconds is None or first.seconds is None:
        return row
    operations = floors[row.name] / floors[first.name]
    figures = {
        "tokens/s": given.sizes[0] / row.seconds.median,
        "GFLOP": floors[row.name] / 1e9,
        "FLOP ratio": operations,
        "above floor": row.time_ratio.median / operations,
    }
    if peak := peak_flops():
        figures["MFU"] = floors[row.name] / row.seconds.median / peak
    return row.model_copy(update={"figures": figures})
