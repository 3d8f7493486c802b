"""What a training step works on: the models, one micro-batch, and what is computed from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.recipe.schema import LEARNING, PathSpec, TeacherModel


@dataclass(frozen=True)
class MicroBatch:
    """B `examples` padded to T tokens (`length`), `images` or tiles, and N `positions` whose logits are computed.

    `masked`: attention takes a mask, because an example is padded or its turns are `independent` (don't see one
    another).
    """

    examples: int
    images: float
    length: int
    positions: int
    masked: bool = True
    independent: bool = False
    teacher: MicroBatch | None = None
    """The same examples as the teacher's own tokens; None: it reads the student's."""
    padding: int = 0
    """How many of the B T tokens are padding."""

    def read_by(self, model: str) -> MicroBatch:
        """Return the examples as the tokens that a model of this name reads."""
        return self if model in LEARNING else self.teacher or self


@dataclass(frozen=True)
class Models:
    """The models of a stage, by name (`student`, `teacher`, ...), and the `vocabulary` columns that student and teacher share."""

    shapes: Mapping[str, ModelShape]
    vocabulary: int
    adapter: tuple[int, int, int] = (0, 0, 0)
    """Widths of the features that the switch's adapter reads and gives, and their number of levels."""
    kept: TeacherModel | None = None
    """How the teacher's weights are kept."""
    low_rank: tuple[int, int] | None = None
    """See `low_rank.adapter_sizes`; None: L_S has no adapters."""
    bits: int | None = None
    """In which L_S's layers are kept; None: they are not packed."""

    @property
    def student(self) -> ModelShape:
        return self.shapes["student"]

    @property
    def teacher(self) -> ModelShape | None:
        return self.shapes.get("teacher")

    @property
    def frozen_parameters(self) -> int:
        """How many all models but the student have."""
        return sum(shape.parameters for name, shape in self.shapes.items() if name != "student")

    @property
    def adapter_parameters(self) -> int:
        ours, theirs, levels = self.adapter
        return (ours + 1) * theirs * levels

    @property
    def packed(self) -> frozenset[str]:
        """The models whose L is kept in few bits."""
        bits = {"student": self.bits, "teacher": self.kept and self.kept.bits}
        return frozenset(name for name in bits if bits[name])

    def trained(self, parts: frozenset[str]) -> int:
        """How many parameters a stage trains that trains these parts, the switch's adapter among them."""
        of_student = self.student.trained(parts)
        if self.low_rank is not None and "language" in parts:
            of_student += self.low_rank[0] - self.student.trainable["language"]
        return of_student + ("adapter" in parts) * self.adapter_parameters


class Pass(NamedTuple):
    """V, P or L of a model, run on a micro-batch, and what a gradient is computed of: its `weights`, its `inputs`.

    `recomputed`: its layers are under activation checkpointing.
    """

    model: str
    batch: MicroBatch
    weights: bool
    inputs: bool
    recomputed: bool = False

    @property
    def own(self) -> bool:
        return self.model == "student"


@dataclass(frozen=True)
class Computation:
    """Which paths a stage computes, and which of the student's parts it trains.

    `recomputed`: whose layers are under activation checkpointing (V_S: vision, L_S: student, L_T: switch). `rounded`: V_S and
    L_S compute with rounded weights.
    """

    models: Models
    paths: frozenset[PathSpec]
    train: frozenset[str]
    recomputed: frozenset[str] = frozenset()
    rounded: bool = False

    def vision(self, batch: MicroBatch) -> Iterator[Pass]:
        """Yield each V that runs. Images need no gradient."""
        for name, _ in {(path.vision, path.images) for path in self.paths}:
            trained = name == "student" and "vision" in self.train
            yield Pass(name, batch.read_by(name), trained, inputs=False, recomputed="vision" in self.recomputed)

    def projectors(self, batch: MicroBatch) -> Iterator[Pass]:
        """Yield each P that runs. Features of V_S need a gradient where it is trained, and the teacher's P in any case."""
        for vision, name, _ in {(path.vision, path.projector, path.images) for path in self.paths}:
            own = name == "student"
            inputs = vision == "student" and ("vision" in self.train or not own)
            yield Pass(name, batch.read_by(name), own and "projector" in self.train, inputs)

    def language(self, batch: MicroBatch) -> Iterator[Pass]:
        """Yield each L that runs."""
        for path in self.paths:
            name, own = path.language, path.language == "student"
            inputs = "student" in path.models and bool(self.train)
            again = ("student" if own else "switch") in self.recomputed
            yield Pass(name, batch.read_by(name), own and "language" in self.train, inputs, again)


def padded_share(batches: Counter[MicroBatch]) -> float:
    """Return the share of padding among the tokens of micro-batches, counted as often as they occur, in [0, 1)."""
    tokens = sum(count * batch.examples * batch.length for batch, count in batches.items())
    return sum(count * batch.padding for batch, count in batches.items()) / tokens
