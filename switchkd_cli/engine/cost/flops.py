"""Floating-point operations of one training step, path by path.

A multiplication and its addition count as two. Counted are matrix products, the patch convolution and attention (every
query with every key, as no kernel counts the causal half); norms, activations, losses, sorts and adapters of low rank are left out. With W
the entries of a layer's matrices, T positions and width d, a layer's forward pass takes 2 T W + 4 T^2 d. Its backward
pass takes 2 T W for the gradient of its input, 2 T W for that of its weights if they are trained, and 8 T^2 d.

| path    | forward        | backward                                                        |
|---------|----------------|-----------------------------------------------------------------|
| student | V_S, P_S, L_S  | L_S, P_S: inputs, and weights where trained                     |
| teacher | V_T, P_T, L_T  | none                                                            |
| switch  | P_T, L_T       | L_T, P_T: inputs only, as the frozen weights get no gradient    |
| reverse | V_T, P_S, L_S  | L_S, P_S: inputs, and weights where trained                     |
| adapter | the switch's   | inputs where V_S is trained, and weights where it is            |
| vision  |                | V_S once, for the student's and the switch's gradient together  |

Layers under activation checkpointing are computed a second time in the backward pass, except the last matrix of each:
torch stops as soon as everything that the gradient needs has been computed. (Where L's last layer is computed at fewer
positions, its output is put in place behind its last matrix, which is then computed again, too.)
"""

from switchkd_cli.engine.cost.workload import Computation, MicroBatch
from switchkd_cli.engine.models.shape import LanguageShape, ModelShape, ProjectorShape, VisionShape


def step(student: ModelShape, teacher: ModelShape | None, batch: MicroBatch, computed: Computation) -> int:
    """Return the operations of one micro-batch: all its paths, forward and backward. What several share counts once."""
    paths, train, recomputed = computed.readings(student, teacher), computed.train, computed.recomputed
    shapes, operations = computed.shapes(student, teacher), 0.0
    vision_trained = "vision" in train
    for vision, _ in {(path.vision, path.images) for path in paths}:
        how = {"trained": vision_trained, "recomputed": "vision" in recomputed} if vision == "student" else {}
        operations += _vision(shapes[vision].vision, batch.read_by(vision), **how)
    for vision, projector, _ in {(path.vision, path.projector, path.images) for path in paths}:
        own = projector == "student"
        inputs = vision == "student" and (vision_trained or not own)
        weights = own and "projector" in train
        operations += _projector(shapes[projector].projector, batch.read_by(projector), weights=weights, inputs=inputs)
        passes = 1 + vision_trained + ("adapter" in train)
        operations += inputs * (not own) * passes * 2 * batch.images * student.features * computed.adapter
    for path in paths:
        own = path.language == "student"
        how = {"gradient": "student" in path.models, "recomputed": ("student" if own else "switch") in recomputed}
        weights = own and "language" in train and computed.low_rank is None
        operations += _language(shapes[path.language].language, batch.read_by(path.language), weights=weights, **how)
    return round(operations)


def forward(student: ModelShape, teacher: ModelShape, batch: MicroBatch) -> int:
    """Return the operations of the forward passes of both models alone, as a mixer reads its candidates."""
    both = (student, batch), (teacher, batch.teacher or batch)
    return round(sum(_vision(m.vision, b) + _projector(m.projector, b) + _language(m.language, b) for m, b in both))


def generation(student: ModelShape, batch: MicroBatch, steps: int) -> int:
    """Return the operations of answers of `steps` tokens, which are sampled together with a cache, behind B prompts.

    `batch`: the prompts, padded to one length. The first token comes out of the pass over the prompts.
    """
    operations = _vision(student.vision, batch) + _projector(student.projector, batch)
    lm = student.language
    for tokens, seen in ((batch.length, batch.length), *((1, batch.length + step) for step in range(1, steps))):
        layers = lm.layers * tokens * (2 * lm.weights + 4 * seen * lm.queries)
        operations += batch.examples * (layers + 2 * lm.width * lm.vocabulary)
    return round(operations)


def _vision(v: VisionShape, batch: MicroBatch, *, trained: bool = False, recomputed: bool = False) -> float:
    """V up to its feature layer: what lies behind it is not computed. Images need no gradient."""
    positions = batch.images * v.positions
    patches = 2 * batch.images * v.patches * v.values * v.width
    layers = v.layers * positions * (2 * v.weights + 4 * v.attended * v.width)
    last_matrices = v.layers * 2 * positions * v.width * v.inner
    backward = patches + 2 * layers + recomputed * (layers - last_matrices)
    return patches + layers + trained * backward


def _projector(p: ProjectorShape, batch: MicroBatch, *, weights: bool = False, inputs: bool = False) -> float:
    """P: its matrices, and a depth-wise convolution where tokens are pooled; backward what these gradients need."""
    any_gradient = weights or inputs
    matrices = (1 + weights) * (p.first + p.second) + any_gradient * p.second + inputs * p.first
    matrices += (1 + inputs) * p.frozen
    convolution = p.tokens * p.convolution * (1 + weights + any_gradient)
    return 2 * batch.images * (p.places * matrices + convolution)


def _language(
    lm: LanguageShape, batch: MicroBatch, *, gradient: bool = False, weights: bool = False, recomputed: bool = False
) -> float:
    """L: the head, and what of the last layer only it reads, at the chosen positions, all else at every position.

    `gradient`: that of its input is needed.
    """
    tokens = batch.examples * batch.length
    left_out = (lm.last > 0) * (tokens - batch.positions)
    matrices = 2 * (tokens * lm.layers * lm.weights - left_out * lm.last)
    attention = 4 * tokens * lm.layers * batch.length * lm.queries
    head = 2 * batch.positions * lm.width * lm.vocabulary
    last_matrices = 2 * tokens * (lm.layers - (lm.last > 0)) * lm.width * lm.inner
    backward = (1 + weights) * (matrices + head) + 2 * attention + recomputed * (matrices + attention - last_matrices)
    return matrices + attention + head + gradient * backward
