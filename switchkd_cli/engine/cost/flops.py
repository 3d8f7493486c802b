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

from math import prod

from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Pass
from switchkd_cli.engine.models.shape import LanguageShape, ModelShape, ProjectorShape, VisionShape


def step(batch: MicroBatch, computed: Computation) -> int:
    """Return the operations of one micro-batch: all its paths, forward and backward. What several share counts once."""
    models, train, operations = computed.models, computed.train, 0.0
    for of in computed.vision(batch):
        operations += _vision(models.shapes[of.model].vision, of)
    for of in computed.projectors(batch):
        operations += _projector(models.shapes[of.model].projector, of)
        if of.inputs and not of.own:
            passes = 1 + ("vision" in train) + ("adapter" in train)
            operations += passes * 2 * batch.images * models.student.features * prod(models.adapter)
    for of in computed.language(batch):
        weights = of.weights and models.low_rank is None
        operations += _language(models.shapes[of.model].language, of._replace(weights=weights))
    return round(operations)


def generation(student: ModelShape, batch: MicroBatch, steps: int) -> int:
    """Return the operations of answers of `steps` tokens, which are sampled together with a cache, behind B prompts.

    `batch`: the prompts, padded to one length. The first token comes out of the pass over the prompts.
    """
    prompts, lm = Pass("student", batch, weights=False, inputs=False), student.language
    operations = _vision(student.vision, prompts) + _projector(student.projector, prompts)
    for tokens, seen in ((batch.length, batch.length), *((1, batch.length + step) for step in range(1, steps))):
        layers = lm.layers * tokens * (2 * lm.weights + 4 * seen * lm.queries)
        operations += batch.examples * (layers + 2 * lm.width * lm.vocabulary)
    return round(operations)


def _vision(v: VisionShape, of: Pass) -> float:
    """V up to its feature layer: what lies behind it is not computed."""
    positions = of.batch.images * v.positions
    patches = 2 * of.batch.images * v.patches * v.values * v.width
    layers = v.layers * positions * (2 * v.weights + 4 * v.attended * v.width)
    last_matrices = v.layers * 2 * positions * v.width * v.inner
    backward = patches + 2 * layers + of.recomputed * (layers - last_matrices)
    return patches + layers + of.weights * backward


def _projector(p: ProjectorShape, of: Pass) -> float:
    """P: its matrices, and a depth-wise convolution where tokens are pooled; backward what these gradients need."""
    any_gradient = of.weights or of.inputs
    matrices = (1 + of.weights) * (p.first + p.second) + any_gradient * p.second + of.inputs * p.first
    matrices += (1 + of.inputs) * p.frozen
    convolution = p.tokens * p.convolution * (1 + of.weights + any_gradient)
    return 2 * of.batch.images * (p.places * matrices + convolution)


def _language(lm: LanguageShape, of: Pass) -> float:
    """L: the head, and what of the last layer only it reads, at the chosen positions, all else at every position."""
    batch, tokens = of.batch, of.batch.examples * of.batch.length
    left_out = (lm.last > 0) * (tokens - batch.positions)
    matrices = 2 * (tokens * lm.layers * lm.weights - left_out * lm.last)
    attention = 4 * tokens * lm.layers * batch.length * lm.queries
    head = 2 * batch.positions * lm.width * lm.vocabulary
    last_matrices = 2 * tokens * (lm.layers - (lm.last > 0)) * lm.width * lm.inner
    again = of.recomputed * (matrices + attention - last_matrices)
    backward = (1 + of.weights) * (matrices + head) + 2 * attention + again
    return matrices + attention + head + of.inputs * backward
