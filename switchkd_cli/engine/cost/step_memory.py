"""Bytes of one GPU in one stage, by component.

ZeRO 0 is torch's own mixed precision: float32 weights and gradients, two float32 moments of AdamW, and bf16 copies of the
matrices for the time of a micro-batch; several GPUs add DDP's buckets. ZeRO 1 to 3 is a bf16 model as DeepSpeed trains
it: bf16 weights and gradients, and float32 weights and moments, sharded over the GPUs. ZeRO 1 shards AdamW's state, 2 the
gradients too (which it adds up in float32), 3 the student's weights too. Every GPU holds the complete teacher.
"""

from __future__ import annotations

from switchkd_cli.engine.cost.activations import AUTOCAST, BF16, FP32, Precision, activations
from switchkd_cli.engine.cost.workload import Computation, MicroBatch, ModelPair
from switchkd_cli.engine.lm_head import positions
from switchkd_cli.planning.estimate import Machine

MOMENTS = 8  # bytes of AdamW's two float32 moments of a parameter
MASTER = 4  # bytes of a float32 copy of a bf16 parameter
OFFLOADED = {"none": (), "optimizer": ("optimiser",), "parameters": ("student weights", "optimiser")}


def precision_of(name: str, zero: int) -> Precision:
    """Return how a recipe's precision is computed with under a ZeRO stage."""
    if name == "fp32":
        return FP32
    return BF16 if zero else AUTOCAST


def persistent_memory(
    student: int, trained: int, teacher: int, precision: Precision, machine: Machine
) -> dict[str, float]:
    """Return the bytes that stay from step to step, given how many parameters there are.

    These are weights, gradients and optimiser; what is offloaded is not on the GPU.
    """
    gpus, zero = machine.gpus, machine.zero
    master = MASTER if precision is BF16 else 0
    gradient = MASTER if precision is BF16 and zero > 1 else precision.weight
    buckets = precision.weight if gpus > 1 and not zero else 0
    memory = {
        "student weights": precision.weight * student / (gpus if zero >= 3 else 1),
        "teacher weights": precision.weight * teacher,
        "gradients": (gradient / (gpus if zero >= 2 else 1) + buckets) * trained,
        "optimiser": (MOMENTS + master) * trained / (gpus if zero >= 1 else 1),
    }
    return memory | dict.fromkeys(OFFLOADED[machine.offload], 0.0)


def step_memory(
    models: ModelPair,
    batch: MicroBatch,
    computed: Computation,
    precision: Precision,
    machine: Machine,
    bytes_per_logit: float,
) -> dict[str, float]:
    """Return the bytes of one GPU by component at a step's fullest moment.

    That is when the losses are computed, or in the backward pass, when a layer is recomputed; or, when all else is
    small, ZeRO's step, which holds a float32 number for each parameter of its share. Under ZeRO 3 all logits exist at
    once, and their gradients wait for the backward pass.
    """
    at_once = machine.zero == 3
    chunk = batch.positions if at_once else min(batch.positions, positions(models.vocabulary))
    logits = bytes_per_logit * chunk * models.vocabulary
    graph = activations(models.student, models.teacher, batch, computed, precision)
    moving = {
        "bf16 copies": graph.cast,
        "activations": graph.saved,
        "logits": logits + (0.0 if at_once else _chunk_gradients(models, batch, computed, precision)),
        "recomputed layer": graph.recomputed_layer if at_once else max(0.0, graph.recomputed_layer - logits),
    }
    trained = models.parameters.trained(computed.train)
    update = MASTER * trained / machine.gpus if machine.zero and machine.offload == "none" else 0.0
    return {
        **persistent_memory(models.parameters.all, trained, models.teacher_parameters, precision, machine),
        **moving,
        "optimiser's step": max(0.0, update - sum(moving.values())),
    }


def _chunk_gradients(models: ModelPair, batch: MicroBatch, computed: Computation, precision: Precision) -> float:
    """Bytes of the gradients that chunks add up: of hidden states through which one goes, of a head that is trained."""
    student, width, head = models.student.language, 0, 0
    if "student" in computed.paths:
        width += student.width
        head = ("language" in computed.train) * student.vocabulary * student.width
    if models.teacher is not None and "switch" in computed.paths:
        width += models.teacher.language.width
    return precision.residual * batch.positions * width + precision.weight * head
