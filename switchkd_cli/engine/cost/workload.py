"""What a training step works on: the models, one micro-batch, and what is computed from it."""

from __future__ import annotations

from dataclasses import dataclass

from switchkd_cli.engine.cost.parameters import Parameters
from switchkd_cli.engine.models.shape import ModelShape


@dataclass(frozen=True)
class MicroBatch:
    """B `examples` padded to T tokens (`length`), P `images`, and N `positions` whose logits are computed.

    `masked`: attention takes a mask, because an example is padded or its turns are `independent` (don't see one
    another).
    """

    examples: int
    images: int
    length: int
    positions: int
    masked: bool = True
    independent: bool = False


@dataclass(frozen=True)
class Computation:
    """Which logits paths a stage computes and which of the student's parts it trains.

    `recomputed`: whose layers are under activation checkpointing (V_S: vision, L_S: student, L_T: switch).
    """

    paths: frozenset[str]
    train: frozenset[str]
    recomputed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelPair:
    """A student and perhaps a teacher, as shapes and parameter counts, and the `vocabulary` columns that they share."""

    student: ModelShape
    parameters: Parameters
    vocabulary: int
    teacher: ModelShape | None = None
    teacher_parameters: int = 0
