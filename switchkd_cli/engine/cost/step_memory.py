"""Bytes of one GPU in one stage, by component.

ZeRO 0 is torch's own mixed precision: float32 weights and gradients, two float32 moments of AdamW, and bf16 copies of the
matrices for the time of a micro-batch; several GPUs add DDP's buckets. ZeRO 1 to 3 is a bf16 model as DeepSpeed trains
it: bf16 weights and gradients, and float32 weights and moments, sharded over the GPUs. ZeRO 1 shards AdamW's state, 2 the
gradients too (which it adds up in float32), 3 the student's weights too. Every GPU holds the complete teacher.
FSDP2 shards what ZeRO 3 does, of torch's own mixed precision.

What a forward pass leaves for the backward pass follows from what transformers' modules save;
tests/cost/test_cost_memory.py compares the formulas with autograd's hooks on small models.

Per position of a layer of width d and inner width f with n norms (2 in most; `shape._norms`), with r bytes a number in the
residual stream and c in a matrix product:

    language  norms        n (4 d + 4), and n r d where their weights are trained
              matrices     their inputs where trained: (3 + 2) c d if each is cast by itself, else 2 r d
              attention    query, key, value, output c each (keys repeated for every head under a mask), 4 a head
              mask         c T, once for all layers where turns are independent and nothing is cast
              gated MLP    3 c f, and c f where trained
              last layer   MLP and its matrices' inputs only at the positions that the head reads; so are the inputs of the
                           query's and the output's matrix, which are then tensors of their own
    vision    norms        n r d
              matrices     their inputs: (3 + 1) c d if each is cast by itself, else 2 r d
              attention    4 c d
              MLP          2 c f; 3 c f with CLIP's quick GELU; 4 c f where gated

Where weights are rounded in each pass (`bits`), each leaves 4 bytes where nothing is cast, and 4 and a share of two scales
where it is trained.

Adapters of low rank leave the inputs of the matrices as if these were trained, and their own; of a matrix in few bits nothing is
cast.

A frozen part through which no gradient goes leaves nothing. A layer under activation checkpointing leaves its input,
r d; in addition its part leaves, once, the mask (T, or r T where turns are independent). Once for all layers of L there are
the rotary angles (2 r h, h the width of a head). In the backward pass one such layer at a time holds all of its bytes.
"""

from dataclasses import dataclass
from math import prod

from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Models, Pass
from switchkd_cli.engine.lm_head import positions
from switchkd_cli.engine.models.low_bits import BYTES, GROUP
from switchkd_cli.engine.models.shape import ProjectorShape, VisionShape
from switchkd_cli.planning.estimate import Machine

MOMENTS = 8  # bytes of AdamW's two float32 moments of a parameter
MASTER = 4  # bytes of a float32 copy of a bf16 parameter
OFFLOADED = {"none": (), "optimizer": ("optimiser",), "parameters": ("student weights", "optimiser")}
SAVED_BY_MLP = {"quick_gelu": 3}  # tensors of inner width; other activations leave two


@dataclass(frozen=True)
class Precision:
    """Bytes of a number: stored weights, residual stream, matrix products. `cast`: weights are cast for each pass."""

    weight: int
    residual: int
    compute: int

    @property
    def cast(self) -> bool:
        return self.compute != self.residual


FP32 = Precision(4, 4, 4)
AUTOCAST = Precision(4, 4, 2)  # torch's mixed precision
BF16 = Precision(2, 2, 2)  # a bf16 model, as DeepSpeed trains it


def precision_of(name: str, zero: int) -> Precision:
    """Return how a recipe's precision is computed with under a ZeRO stage."""
    mixed = BF16 if zero else AUTOCAST
    return FP32 if name == "fp32" else mixed


def persistent_memory(
    student: int, trained: int, teacher: int, precision: Precision, machine: Machine
) -> dict[str, float]:
    """Return the bytes that stay from step to step, given how many parameters there are.

    These are weights, gradients and optimiser; what is offloaded is not on the GPU.
    """
    gpus, zero = machine.gpus, machine.sharding
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
    batch: MicroBatch, computed: Computation, precision: Precision, machine: Machine, bytes_per_logit: float
) -> dict[str, float]:
    """Return the bytes of one GPU by component at a step's fullest moment.

    That is when the losses are computed, or in the backward pass, when a layer is recomputed; or, when all else is
    small, ZeRO's step, which holds a float32 number for each parameter of its share. Under ZeRO 3 all logits exist at
    once, and their gradients wait for the backward pass.
    """
    models, at_once = computed.models, machine.sharding == 3
    chunk = batch.positions if at_once else min(batch.positions, positions(models.vocabulary))
    logits = bytes_per_logit * chunk * models.vocabulary
    graph = activations(batch, computed, precision)
    moving = {
        "bf16 copies": graph.cast,
        "activations": graph.saved,
        "logits": logits + (0.0 if at_once else _chunk_gradients(batch, computed, precision)),
        "recomputed layer": graph.recomputed_layer if at_once else max(0.0, graph.recomputed_layer - logits),
    }
    trained = models.trained(computed.train)
    update = MASTER * trained / machine.gpus if machine.zero and machine.offload == "none" else 0.0
    sizes = models.student.parameters + models.adapter_parameters, trained, models.frozen_parameters
    held = persistent_memory(*sizes, precision, machine)
    held["student weights"] += MASTER * models.low_rank[0] if models.low_rank else 0
    for who, spared in _spared(models, precision, machine).items():
        held[f"{who} weights"] -= spared
    return held | moving | {"optimiser's step": max(0.0, update - sum(moving.values()))}


def _spared(models: Models, precision: Precision, machine: Machine) -> dict[str, float]:
    """Bytes of the layers of L that are packed, or whose place is not always this GPU."""
    spared, ours, kept = {}, models.student.language, models.kept
    if models.bits is not None:
        sharded = machine.gpus if machine.sharding == 3 else 1
        spared["student"] = ours.layers * ours.weights * (precision.weight / sharded - BYTES[models.bits])
    if models.teacher is not None and kept is not None:
        theirs = models.teacher.language
        if kept.bits is not None:
            spared["teacher"] = theirs.layers * theirs.weights * (precision.weight - BYTES[kept.bits])
        # the layer that runs is whole, and of a sharded teacher the first
        shares = {"whole": 0.0, "offloaded": theirs.layers - 1, "sharded": (theirs.layers - 2) * (1 - 1 / machine.gpus)}
        spared.setdefault("teacher", max(0.0, shares[kept.weights]) * theirs.weights * precision.weight)
    return spared


def _chunk_gradients(batch: MicroBatch, computed: Computation, precision: Precision) -> float:
    """Bytes of the gradients that chunks add up: of hidden states through which one goes, of a head that is trained."""
    models, read = computed.models, [of for of in computed.language(batch) if of.inputs]
    width = sum(models.shapes[of.model].language.width for of in read)
    trained = sum(of.weights for of in read) if models.low_rank is None else 0
    head = models.student.language.vocabulary * models.student.language.width
    return precision.residual * batch.positions * width + precision.weight * trained * head


@dataclass
class Activations:
    """Bytes that a micro-batch takes: `saved` by the forward pass for the backward pass, `cast` copies of matrices.

    `recomputed_layer`: the most that one layer holds while it is recomputed, with its cast matrices and the gradient of its
    output; 0 where none is. Autocast casts matrices anew for every micro-batch; those of trained layers stay to the end of
    the forward pass, frozen ones that are recomputed do not.
    """

    saved: float = 0.0
    cast: float = 0.0
    recomputed_layer: float = 0.0


def activations(batch: MicroBatch, computed: Computation, precision: Precision) -> Activations:
    """Return the bytes of all paths of one micro-batch together."""
    total, models = Activations(), computed.models
    if "vision" in computed.train:  # autocast keeps the copies of trained matrices for further passes
        v = models.student.vision
        total.cast += precision.cast * precision.compute * (v.layers * v.weights + v.values * v.width)
    for of in computed.vision(batch):
        if of.weights:
            _add_vision(total, models.student.vision, of, precision, rounded=computed.rounded)
    for of in computed.projectors(batch):
        if of.weights or of.inputs:
            _add_projector(total, models.shapes[of.model].projector, of, precision)
        if of.inputs and not of.own:
            adapter = prod(models.adapter)
            total.cast += precision.cast * precision.compute * adapter
            inputs = models.student.features * adapter / models.shapes[of.model].vision.width
            total.saved += ("adapter" in computed.train) * precision.compute * batch.images * inputs
    for of in computed.language(batch):
        if of.inputs:
            _add_language(total, computed, of, precision)
    return total


def _rounding(weights: float, p: Precision, trained: bool) -> float:
    """Bytes that the rounding of a layer's weights leaves."""
    return weights * (4 * (not p.cast) + trained * (4 + 4 / GROUP))


def _add_vision(total: Activations, v: VisionShape, of: Pass, p: Precision, *, rounded: bool) -> None:
    """V up to its feature layer, all of it trained."""
    batch, recomputed = of.batch, of.recomputed
    positions, layer_input = batch.images * v.positions, p.residual * v.width
    matrices = (4 * p.compute if p.cast else 2 * p.residual) + 4 * p.compute
    mlp = (4 if v.gated else SAVED_BY_MLP.get(v.activation, 2)) * p.compute * v.inner
    layer = v.norms * p.residual * v.width + matrices * v.width + mlp
    total.saved += positions * (v.layers * (layer_input if recomputed else layer) + v.input_norm * layer_input)
    total.saved += batch.images * v.patches * v.values * p.compute
    rounding = rounded * _rounding(v.weights, p, trained=True)
    total.saved += v.layers * rounding * (not recomputed)
    if recomputed:
        held = positions * (layer + layer_input) + p.cast * p.compute * v.weights + rounding
        total.recomputed_layer = max(total.recomputed_layer, held)


def _add_language(total: Activations, computed: Computation, of: Pass, p: Precision) -> None:
    """L, through which a gradient goes to its input, and its head."""
    models, batch, trained, recomputed = computed.models, of.batch, of.weights, of.recomputed
    lm, low_rank = models.shapes[of.model].language, models.low_rank if of.own else None
    trained_weights = trained and low_rank is None
    positions, layer_input = batch.examples * batch.length, p.residual * lm.width
    norm = 4 * lm.width + 4 + trained_weights * layer_input
    matrices = trained * lm.width * (5 * p.compute if p.cast else 2 * p.residual)
    keys = lm.queries if batch.masked else lm.keys
    attention = p.compute * (2 * lm.queries + 2 * keys) + 4 * lm.heads
    mlp = (3 + trained) * p.compute * lm.inner
    layer = last = lm.norms * norm + matrices + attention + mlp
    if lm.last:
        inputs = lm.width * (3 * p.compute if p.cast else 2 * p.residual) + p.compute * lm.queries
        of_keys = trained * lm.width * (2 * p.compute if p.cast else p.residual)
        last = lm.norms * norm + of_keys + attention + batch.positions / positions * (mlp + trained * inputs)
    mask = batch.masked * p.compute * batch.length
    total.saved += positions * p.compute * (low_rank[1] if low_rank else 0)
    total.saved += trained_weights * batch.positions * lm.width * p.compute  # the head's input
    angles = 2 * p.residual * lm.queries / lm.heads
    rounding = of.own * computed.rounded * _rounding(lm.weights, p, trained)
    if recomputed:
        masks = batch.masked * (p.residual if batch.independent else 1) * batch.length
        total.saved += positions * (lm.layers * layer_input + angles + masks + norm)
        held = positions * (layer + mask + layer_input) + p.cast * p.compute * lm.weights + rounding
        total.recomputed_layer = max(total.recomputed_layer, held)
    else:
        masks = mask * (1 if batch.independent and not p.cast else lm.layers)
        total.saved += positions * ((lm.layers - 1) * layer + last + angles + masks + norm) + lm.layers * rounding
    layers = lm.layers if (trained or not recomputed) and of.model not in models.packed else 0
    total.cast += p.cast * p.compute * (layers * lm.weights + lm.width * lm.vocabulary)


def _add_projector(total: Activations, m: ProjectorShape, of: Pass, p: Precision) -> None:
    """P: the input of its GELU, of its matrices where they are trained, of pooling and convolution.

    A gradient of its inputs goes through a frozen projector, too, whose GELU reads as much as the map behind it.
    """
    frozen = of.inputs * m.frozen
    read = m.places * (m.hidden + of.weights * (m.input + m.hidden) + (frozen > 0) * m.input)
    pooled = (m.convolution > 0) * (m.places + m.tokens) * m.width
    total.saved += p.compute * of.batch.images * (read + pooled)
    total.cast += p.cast * p.compute * (m.first + m.second + frozen)
