"""Bytes of one GPU in one stage, by component, and the largest micro-batch that fits.

ZeRO 0 is torch's own mixed precision: float32 weights and gradients, two float32 moments of AdamW, and bf16 copies of the
matrices for the time of a micro-batch; several GPUs add DDP's buckets. ZeRO 1 to 3 is a bf16 model as DeepSpeed trains
it: bf16 weights and gradients, and float32 weights and moments, shared out among the GPUs. ZeRO 1 shares out what AdamW
keeps, 2 the gradients too (which it adds up in float32), 3 the student's weights too. The teacher is whole on every GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from switchkd_cli.engine.cost.activations import (
    AUTOCAST,
    BF16,
    FP32,
    Precision,
    activations,
    casts,
    recomputed_layer,
)
from switchkd_cli.engine.cost.loss_memory import heads, logits, slopes
from switchkd_cli.engine.cost.shape import Shape
from switchkd_cli.engine.cost.workload import Rows, Terms

MOMENTS = 8  # bytes of AdamW's two float32 moments of a parameter
MASTER = 4  # bytes of a float32 copy of a bf16 parameter
OFFLOADED = {"none": (), "optimizer": ("optimiser",), "parameters": ("student weights", "optimiser")}


@dataclass(frozen=True)
class Sizes:
    """Parameters of the student, of those that the stage trains, and of a teacher that is there (0: none)."""

    student: int
    trained: int
    teacher: int


def precision_of(name: str, zero: int) -> Precision:
    """How a recipe's precision is computed with."""
    if name == "fp32":
        return FP32
    return BF16 if zero else AUTOCAST


def states(
    sizes: Sizes, precision: Precision, gpus: int, zero: int, offload: str = "none"
) -> dict[str, float]:
    """Bytes that stay from step to step: weights, gradients, optimiser. What is offloaded is not on the GPU."""
    mine = {stage: gpus if zero >= stage else 1 for stage in (1, 2, 3)}
    master = MASTER if precision is BF16 else 0
    buckets = precision.weight if gpus > 1 and not zero else 0
    gradient = MASTER if precision is BF16 and zero > 1 else precision.weight
    stay = {
        "student weights": precision.weight * sizes.student / mine[3],
        "teacher weights": precision.weight * sizes.teacher,
        "gradients": (gradient / mine[2] + buckets) * sizes.trained,
        "optimiser": (MOMENTS + master) * sizes.trained / mine[1],
    }
    return stay | {name: 0.0 for name in OFFLOADED[offload]}


def step_memory(
    student: Shape,
    teacher: Shape | None,
    sizes: Sizes,
    rows: Rows,
    terms: Terms,
    precision: Precision,
    vocabulary: int,
    *,
    gpus: int = 1,
    zero: int = 0,
    offload: str = "none",
) -> dict[str, float]:
    """Bytes of one GPU by component at a step's fullest moment.

    That is when the losses are there; where layers are recomputed it may be the end of the forward pass, while autocast
    still has its copies, or the backward pass, with one layer whole beside what the chunks have left (under ZeRO 3 beside
    all logits and their gradients); or, when all else is small, ZeRO's step, which holds a float32 number for each
    parameter of its share.
    """
    of = student, teacher, rows, terms, precision
    at_once = zero == 3
    kept, told = sum(activations(*of).values()), heads(*of) if at_once else 0.0
    added = 0.0 if at_once else slopes(*of)
    copies = {still: casts(student, teacher, terms, precision, autocast=still) for still in (True, False)}
    moments = [
        _moving(copies[False], kept, added + logits(*of, vocabulary, at_once=at_once), 0.0),
        _moving(copies[True], kept, told, 0.0),
        _moving(copies[False], kept, added + 2 * told, recomputed_layer(*of)),
    ]
    full = max(moments[: 3 if terms.recomputed else 1], key=lambda moment: sum(moment.values()))
    update = MASTER * sizes.trained / gpus if zero and offload == "none" else 0.0
    beyond = max(0.0, update - sum(full.values()))
    return {**states(sizes, precision, gpus, zero, offload), **full, "optimiser's step": beyond}


def _moving(copies: float, kept: float, told: float, layer: float) -> dict[str, float]:
    return {"bf16 copies": copies, "activations": kept, "logits": told, "recomputed layer": layer}
