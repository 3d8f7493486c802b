"""Bytes of logits and losses at the kept positions.

There are N positions at a time and V columns: those of a chunk, or under ZeRO 3 all that are kept. Each path's logits
stay while the losses look at them; a loss that looks at some of the positions takes a copy of those. The figures of a loss
are bytes for each of the N V logits, counted with autograd's hooks and the profiler (tests/cost/test_cost_memory.py does so
again): what it leaves for the backward pass, and what it holds for a moment, while its forward pass searches
and exponentiates. From chunk to chunk the gradients add up: of the last states, and of a head that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from switchkd_cli.engine.cost.activations import Precision
from switchkd_cli.engine.cost.shape import Shape
from switchkd_cli.engine.cost.workload import Rows, Terms
from switchkd_cli.engine.lm_head import positions
from switchkd_cli.engine.losses.ops.leaders import BLOCK


@dataclass(frozen=True)
class Footprint:
    """Bytes a logit. A loss `in_blocks` holds its momentary bytes for one block of rows at a time.

    It compares the logits of so many `sides`.
    """

    left: float
    momentary: float
    in_blocks: bool = False
    sides: int = 2


# Each id in front of a knee leaves 12 bytes a side: measured where a row has a tenth of the vocabulary, more than usual.
FOOTPRINTS = {
    "cross_entropy": Footprint(4, 8, sides=1),
    "forward_kl": Footprint(8, 20),
    "reverse_kl": Footprint(12, 16),
    "jensen_shannon": Footprint(28, 28),
    "skewed_kl": Footprint(16, 24),
    "skewed_reverse_kl": Footprint(20, 20),
    "bild": Footprint(0.1, 6, in_blocks=True),
    "dbild": Footprint(2, 14, in_blocks=True),
    "dbild_forward": Footprint(2, 14, in_blocks=True),
    "dbild_teacher_led": Footprint(1, 13, in_blocks=True),
    "dbild_student_led": Footprint(1, 13, in_blocks=True),
    "knee_kl": Footprint(2, 14, in_blocks=True),
    "decoupled_kd": Footprint(14, 20),
    "taid": Footprint(8, 24),
    "self_correlation": Footprint(
        4, 12
    ),  # of rows of equal length, which pictures are; and L^2 numbers for L positions
    "sinkhorn": Footprint(12, 12),  # the same
    "hidden_correlation": Footprint(0, 0),  # it reads no logits
}
UNKNOWN = Footprint(16, 32)
"""A loss that nobody has measured."""

FLOAT = 4
"""Bytes. The figures are of bfloat16 logits; float32 ones need no copy in float32."""


def heads(student: Shape, teacher: Shape | None, rows: Rows, terms: Terms, precision: Precision) -> float:
    """Bytes of all logits at once."""
    widths = [student.language.vocabulary] * terms.student
    if teacher is not None:
        widths += [teacher.language.vocabulary] * (terms.teacher + terms.switch)
    return rows.kept * precision.compute * sum(widths)


def logits(
    student: Shape,
    teacher: Shape | None,
    rows: Rows,
    terms: Terms,
    precision: Precision,
    vocabulary: int,
    *,
    at_once: bool = False,
) -> float:
    """Bytes at the moment when they are most: the logits, what the losses leave, and the largest loss at work."""
    kept = rows.kept if at_once else min(rows.kept, positions(vocabulary))
    whole = heads(student, teacher, rows, terms, precision)
    whole *= 1 if at_once or not rows.kept else kept / rows.kept
    left, momentary = 0.0, 0.0
    for name, share in terms.losses:
        footprint = FOOTPRINTS.get(name, UNKNOWN)
        compared = kept * share * vocabulary
        copies = footprint.sides if share < 1 else 0
        chosen = copies * precision.compute * compared
        in_a_block = min(compared, BLOCK) if footprint.in_blocks else compared
        left += footprint.left * compared
        at_work = max(0.0, footprint.momentary - (FLOAT if precision.compute == FLOAT else 0))
        momentary = max(momentary, at_work * in_a_block + chosen)
    return whole + left + momentary


def slopes(student: Shape, teacher: Shape | None, rows: Rows, terms: Terms, precision: Precision) -> float:
    """Bytes of the gradients that chunks add up: of the last states through which one goes, of a head that is trained."""
    widths = [student.language.width] * terms.student
    if teacher is not None:
        widths += [teacher.language.width] * terms.switch
    head = terms.student * terms.trains("language") * student.language.vocabulary * student.language.width
    return precision.residual * rows.kept * sum(widths) + precision.weight * head
