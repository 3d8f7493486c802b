"""Adapters of low rank, and a teacher whose weights are kept otherwise: a step's time and memory, and what rounding changes.

Named levels only: `make bench LEVELS=budgets`. It needs peft and bitsandbytes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.bench.allocated import bytes_of
from scripts.bench.machine import device
from scripts.bench.pairs import MIDDLING, SMALL, Size, batch, build
from scripts.bench.results import Level
from scripts.bench.results import Row as Measured
from scripts.bench.rounds import FULL, QUICK, Effort, Running, Variant, measure
from scripts.bench.step import SWITCH, Row, precision, sizes_of, stage_of, trainer_of
from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.build import load, open_data
from switchkd_cli.engine.evaluation.against_teacher import fidelity
from switchkd_cli.engine.models.layer_forwards import offload
from switchkd_cli.engine.models.low_bits import PackedLinear, pack
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.recipe.schema import DataSet

ROWS = 64  # of the playground, on which a rounded teacher is compared with itself


@dataclass(frozen=True)
class Way:
    """A way of training: the stage's fields, and what is done to the teacher."""

    name: str
    stage: Mapping[str, Any] = field(default_factory=dict)
    bits: int | None = None
    offloaded: bool = False


WAYS = (
    Way("all weights, teacher whole"),
    Way("LoRA, rank 16", {"lora": {"rank": 16}}),
    Way("DoRA, rank 16", {"lora": {"rank": 16, "dora": True}}),
    Way("QLoRA, rank 16, 4 bits", {"lora": {"rank": 16, "bits": 4}}),
    Way("teacher in 8 bits", bits=8),
    Way("teacher in 4 bits", bits=4),
    Way("switch pass recomputed", {"activation_checkpointing": ("switch",)}),
    Way("teacher in 4 bits, switch pass recomputed", {"activation_checkpointing": ("switch",)}, bits=4),
    Way("teacher offloaded (to where it is)", offloaded=True),
    Way("QLoRA, teacher in 4 bits", {"lora": {"rank": 16, "bits": 4}}, bits=4),
)
"""The first is the yardstick. On a CPU an offloaded teacher only shows what its recomputed layers cost."""


def measure_level(quick: bool) -> Level:
    level = Level(title="budgets: a Switch-KD step with less memory", setting={"precision": precision()})
    for size in [SMALL] if quick else [SMALL, MIDDLING]:
        rows, setting = _of_size(size, QUICK if quick else FULL)
        level = level.model_copy(
            update={"rows": level.rows + rows, "setting": level.setting | {f"{size.name} pair": setting}}
        )
    return level


def _of_size(size: Size, effort: Effort) -> tuple[list[Measured], str]:
    where = device()
    paths, given = build(size, where), batch(size, build(size, where), where)
    variants = [Variant(way.name, partial(_stepping, paths, given, way)) for way in WAYS]
    rows = measure(f"{size.name} pair", variants, effort)
    of_bits = {way.name: rounding(way.bits) for way in WAYS if way.bits is not None}
    return [row.model_copy(update={"figures": row.figures | of_bits.get(row.name, {})}) for row in rows], sizes_of(
        paths, given
    )


@contextmanager
def _stepping(paths: Paths, given: Batch, way: Way) -> Iterator[Running]:
    """Yield a way's steps on one batch, with models of its own."""
    own = copy.deepcopy(paths)
    assert own.teacher is not None
    if way.bits is not None:
        pack(own.teacher.language.layers, way.bits)
    if way.offloaded:
        offload(own.teacher)
    stage = stage_of(Row(way.name, SWITCH, way.stage), len(given.ids))
    with TemporaryDirectory() as folder, closing(trainer_of(stage, own, folder)) as trainer:
        kept = partial(_alive, own, trainer.replica.adamw)
        yield Running({"step": _step(trainer, given)}, alive=kept)


def _step(trainer: Any, given: Batch) -> Callable[[], object]:
    return lambda: trainer.step([given], diagnosed=False)


def _alive(paths: Paths, adamw: Any) -> int:
    """Return the bytes of both models' weights and of the optimiser's states."""
    moments = [value for kept in adamw.state.values() for value in kept.values() if hasattr(value, "untyped_storage")]
    models = [paths.student, paths.teacher]
    packed = [m for model in models for m in model.modules() if isinstance(m, PackedLinear)]
    states = [state for m in packed for state in (m.state, m.state.state2) if state is not None]
    tensors = [*(m.packed for m in packed), *(state.absmax for state in states), *moments]
    return bytes_of([*(p for model in models for p in model.parameters()), *tensors])


@cache
def rounding(bits: int) -> dict[str, float]:
    """Compare the playground's teacher with itself in so few bits, on its answers to rows of the playground."""
    whole, rounded = load("playground:teacher"), load("playground:teacher")
    pack(rounded.language.layers, bits)
    found = fidelity(Paths(rounded, whole, len(whole.inputs.tokenizer)), _data(whole), precision=precision())
    return {"KL to the whole teacher": found["kl"], "agreement": found["agreement"]}


def _data(model: VisionLanguageModel) -> Any:
    spec = DataSet(source="playground", parameters={"pictures": ROWS, "kind": "instructions", "seed": 0})
    with TemporaryDirectory() as folder:
        data = open_data(spec, model.inputs, Path(folder))
        data.inspect()
        return [data[i] for i in range(len(data))]
