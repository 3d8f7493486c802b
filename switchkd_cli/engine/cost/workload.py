"""What a training step works on: the models, one micro-batch, and what is computed from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.recipe.schema import BUILT_IN, LEARNING, PathSpec, TeacherModel


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
class Computation:
    """Which logits paths a stage computes and which of the student's parts it trains.

    `recomputed`: whose layers are under activation checkpointing (V_S: vision, L_S: student, L_T: switch). `adapter`: weights of
    the matrices of the switch's adapter, without those of its biases. `rounded`: V_S and L_S compute with rounded weights.
    `low_rank`: numbers that adapters on L_S, which learn instead of it, keep of a position; None: there are none. `packed`: L_S (student) or
    L_T (teacher) whose weights are kept in few bits.
    `known`: paths by name. `teachers`: further ones.
    """

    paths: frozenset[str]
    train: frozenset[str]
    recomputed: frozenset[str] = frozenset()
    adapter: int = 0
    rounded: bool = False
    low_rank: int | None = None
    packed: frozenset[str] = frozenset()
    known: Mapping[str, PathSpec] = field(default_factory=lambda: BUILT_IN)
    teachers: Mapping[str, ModelShape] = field(default_factory=dict)

    def shapes(self, student: ModelShape, teacher: ModelShape | None) -> dict[str, ModelShape]:
        """Return the shape of each model by its name."""
        taught = {} if teacher is None else {"teacher": teacher}
        return {**dict.fromkeys(LEARNING, student), **taught, **self.teachers}

    def readings(self, student: ModelShape, teacher: ModelShape | None) -> set[PathSpec]:
        """Return the paths through models that there are, each once."""
        models = self.shapes(student, teacher).keys()
        return {path for name, path in self.known.items() if name in self.paths and path.models <= models}


def padded_share(batches: Counter[MicroBatch]) -> float:
    """Return the share of padding among the tokens of micro-batches, counted as often as they occur, in [0, 1)."""
    tokens = sum(count * batch.examples * batch.length for batch, count in batches.items())
    return sum(count * batch.padding for batch, count in batches.items()) / tokens


@dataclass(frozen=True)
class ModelPair:
    """A student and perhaps a teacher, and the `vocabulary` columns that they share."""

    student: ModelShape
    vocabulary: int
    teacher: ModelShape | None = None
    teacher_parameters: int = 0
    """Of all frozen models."""
    adapter: tuple[int, int, int] = (0, 0, 0)
    """Widths of the features that the switch's adapter reads and gives, and their number of levels."""
    teachers: Mapping[str, ModelShape] = field(default_factory=dict)
    """Further ones, by name."""
    kept: TeacherModel | None = None
    """How the teacher's weights are kept."""
    low_rank: tuple[int, int] | None = None
    """See `low_rank.adapter_sizes`; None: L_S has no adapters."""
    packed: int | None = None
    """The bits in which L_S's layers are kept; None: they are not packed."""

    @property
    def adapter_parameters(self) -> int:
        ours, theirs, levels = self.adapter
        return (ours + 1) * theirs * levels

    def trained(self, parts: frozenset[str]) -> int:
        """How many parameters a stage trains that trains these parts, the switch's adapter among them."""
        of_student = self.student.trained(parts)
        if self.low_rank is not None and "language" in parts:
            of_student += self.low_rank[0] - self.student.trainable["language"]
        return of_student + ("adapter" in parts) * self.adapter_parameters
