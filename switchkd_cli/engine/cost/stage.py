"""One stage's micro-batch, memory and operations, from what is known of the models and the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from switchkd_cli import registry
from switchkd_cli.engine.batch import POSITIONS
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.data_sample import Look
from switchkd_cli.engine.cost.parameters import Parameters
from switchkd_cli.engine.cost.shape import Shape
from switchkd_cli.engine.cost.step_memory import Sizes, precision_of, step_memory
from switchkd_cli.engine.cost.workload import Rows, Terms
from switchkd_cli.planning.estimate import GIB, Machine
from switchkd_cli.recipe.schema import Stage, Term

USABLE = 0.9  # of a GPU's memory; the driver, kernels' workspaces and fragments take the rest


@dataclass(frozen=True)
class Pairing:
    """A student and perhaps a teacher as shapes and parameters, and the `vocabulary` columns that they share."""

    student: Shape
    size: Parameters
    vocabulary: int
    teacher: Shape | None = None
    teacher_size: int = 0


@dataclass(frozen=True)
class StepForecast:
    """Rows of one GPU's micro-batch, the most that would fit (None: not even one), bytes of one GPU, operations.

    `padding` is the share of padding among its tokens, `grouped` what it is or would be with `group_by`.
    """

    micro: int
    largest: int | None
    memory: Mapping[str, float]
    flops: float
    padding: float
    grouped: float


def step_forecast(
    stage: Stage, pairing: Pairing, look: Look, machine: Machine, precision: str
) -> StepForecast:
    """One optimiser step. The micro-batch is the recipe's; the largest that fits where it names none.

    Memory is that of the sample's largest micro-batch, operations and padding are those of its mean step.
    """
    gpus = max(n for n in range(1, machine.gpus + 1) if stage.batch % n == 0)
    each = stage.batch // gpus
    micros = [n for n in range(1, each + 1) if each % n == 0]
    memory = {n: _memory(stage, pairing, look, machine, precision, gpus, n) for n in micros}
    fitting = [n for n in micros if sum(memory[n].values()) <= USABLE * machine.memory * GIB]
    largest = max(fitting, default=None)
    wanted = stage.micro_batch or largest or 1
    micro = max(n for n in micros if n <= wanted)
    terms, on = _terms(stage, look)
    grouped = stage.group_by is not None
    batches = Counter(look.padded(rows, on) for rows in look.steps(stage.batch, micro, grouped=grouped))
    taken = sum(
        count * sum(flops.step(pairing.student, pairing.teacher, rows, terms).values())
        for rows, count in batches.items()
    )
    padding = {by_length: look.padding(stage.batch, micro, grouped=by_length) for by_length in (False, True)}
    return StepForecast(
        micro,
        largest,
        memory[micro],
        stage.batch / micro * taken / batches.total(),
        padding[grouped],
        padding[True],
    )


def _memory(
    stage: Stage, pairing: Pairing, look: Look, machine: Machine, precision: str, gpus: int, micro: int
) -> dict[str, float]:
    terms, on = _terms(stage, look)
    sizes = Sizes(pairing.size.all, pairing.size.trained(terms.train), pairing.teacher_size)

    def of(rows: Rows) -> dict[str, float]:
        return step_memory(
            pairing.student,
            pairing.teacher,
            sizes,
            rows,
            terms,
            precision_of(precision, machine.zero),
            pairing.vocabulary,
            gpus=gpus,
            zero=machine.zero,
            offload=machine.offload,
        )

    batches = look.micro_batches(micro, on, grouped=stage.group_by is not None)
    return max((of(rows) for rows in set(batches)), key=lambda memory: sum(memory.values()))


def _terms(stage: Stage, look: Look) -> tuple[Terms, str]:
    """What the stage computes, and the widest kind of position that it looks at."""
    on = looked_at(stage)
    most = look.mean(on) or 1
    losses = tuple((term.loss, look.mean(term.on) / most) for term in _spoken(stage))
    recomputed = frozenset(stage.activation_checkpointing)
    return Terms(stage.paths, frozenset(stage.train), losses, recomputed), on


def looked_at(stage: Stage) -> str:
    """The widest kind of position that its terms look at."""
    looked = {term.on for term in _spoken(stage)} or {POSITIONS[0]}
    on = max(looked, key=POSITIONS.index)
    # image tokens and some of the text: no more than everything
    return "all" if on == "image" and len(looked) > 1 else on


def _spoken(stage: Stage) -> list[Term]:
    """The terms that look at positions, not at pictures."""
    return [term for term in stage.objective if not registry.signature("loss", term.loss).of_images]
