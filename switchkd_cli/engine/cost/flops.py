"""Floating-point operations of one training step, path by path.

A multiplication and its addition count as two. Counted are matrix products, the patch convolution and attention (every
query with every key, as no kernel counts the causal half); norms, activations, losses and sorts are left out. With W
the entries of a layer's matrices, T positions and width d, a layer's forward pass takes 2 T W + 4 T^2 d. Its backward
pass takes 2 T W for the gradient of its input, 2 T W for that of its weights if they are trained, and 8 T^2 d.

| path    | forward        | backward                                                        |
|---------|----------------|-----------------------------------------------------------------|
| student | V_S, P_S, L_S  | L_S, P_S: inputs, and weights where trained                     |
| teacher | V_T, P_T, L_T  | none                                                            |
| switch  | P_T, L_T       | L_T, P_T: inputs only, as the frozen weights get no gradient    |
| vision  |                | V_S once, for the student's and the switch's gradient together  |

Layers under activation checkpointing are computed a second time in the backward pass, except the last matrix of each:
torch stops as soon as everything that the gradient needs has been computed.
"""

from __future__ import annotations

from switchkd_cli.engine.cost.workload import Computation, MicroBatch
from switchkd_cli.engine.models.shape import LanguageShape, ModelShape, ProjectorShape, VisionShape


def step(student: ModelShape, teacher: ModelShape | None, batch: MicroBatch, computed: Computation) -> dict[str, float]:
    """Return the operations of one micro-batch by purpose, e.g. "switch: backward"."""
    flops: dict[str, float] = {}
    paths, train, recomputed = computed.paths, computed.train, computed.recomputed
    vision_trained = "vision" in train
    if paths & {"student", "switch"}:
        flops["vision: forward"] = _vision(student.vision, batch)
    if vision_trained:
        flops["vision: backward"] = _vision_backward(student.vision, batch)
        if "vision" in recomputed:
            flops["vision: recomputed"] = _vision_recomputed(student.vision, batch)
    if "student" in paths:
        projector, language = student.projector, student.language
        flops["student: forward"] = _projector(projector, batch) + _language(language, batch)
        flops["student: backward"] = _projector_backward(
            projector, batch, weights="projector" in train, inputs=vision_trained
        ) + _language_backward(language, batch, weights="language" in train)
        if "student" in recomputed:
            flops["student: recomputed"] = _language_recomputed(language, batch)
    if teacher is not None:
        projector, language = teacher.projector, teacher.language
        forward = _projector(projector, batch) + _language(language, batch)
        if "teacher" in paths:
            flops["teacher: forward"] = _vision(teacher.vision, batch) + forward
        if "switch" in paths:
            flops["switch: forward"] = forward
            flops["switch: backward"] = _projector_backward(
                projector, batch, weights=False, inputs=True
            ) + _language_backward(language, batch, weights=False)
            if "switch" in recomputed:
                flops["switch: recomputed"] = _language_recomputed(language, batch)
    return flops


def _vision(v: VisionShape, batch: MicroBatch) -> float:
    """V forward, up to its feature layer: what lies behind it is not computed."""
    return _patches(v, batch) + _vision_layers(v, batch)


def _vision_backward(v: VisionShape, batch: MicroBatch) -> float:
    """V backward: weights and inputs of the layers; images need no gradient."""
    return _patches(v, batch) + 2 * _vision_layers(v, batch)


def _vision_recomputed(v: VisionShape, batch: MicroBatch) -> float:
    last_matrices = v.layers * 2 * batch.images * v.positions * v.width * v.inner
    return _vision_layers(v, batch) - last_matrices


def _vision_layers(v: VisionShape, batch: MicroBatch) -> float:
    return v.layers * batch.images * v.positions * (2 * v.weights + 4 * v.positions * v.width)


def _patches(v: VisionShape, batch: MicroBatch) -> float:
    """The convolution that cuts an image into patches."""
    return 2 * batch.images * (v.image // v.patch) ** 2 * 3 * v.patch**2 * v.width


def _projector(p: ProjectorShape, batch: MicroBatch) -> float:
    """P forward: two matrices, and a depth-wise 3x3 convolution where tokens are pooled."""
    return 2 * batch.images * p.features * sum(p.weights) + _convolution(p, batch)


def _projector_backward(p: ProjectorShape, batch: MicroBatch, *, weights: bool, inputs: bool) -> float:
    """P backward: nothing is computed where neither gradient is needed."""
    first, second = p.weights
    any_gradient = weights or inputs
    matrices = weights * (first + second) + any_gradient * second + inputs * first
    return 2 * batch.images * p.features * matrices + (weights + any_gradient) * _convolution(p, batch)


def _convolution(p: ProjectorShape, batch: MicroBatch) -> float:
    return 2 * batch.images * p.tokens * 9 * p.width if p.pooled else 0.0


def _language(lm: LanguageShape, batch: MicroBatch) -> float:
    """L forward: every layer at every position, the head at the chosen positions only."""
    return _matrices(lm, batch) + _attention(lm, batch) + _head(lm, batch)


def _language_backward(lm: LanguageShape, batch: MicroBatch, *, weights: bool) -> float:
    """L backward: always the gradient of its input, as something in front of it is trained."""
    return (1 + weights) * (_matrices(lm, batch) + _head(lm, batch)) + 2 * _attention(lm, batch)


def _language_recomputed(lm: LanguageShape, batch: MicroBatch) -> float:
    last_matrices = lm.layers * 2 * batch.examples * batch.length * lm.width * lm.inner
    return _matrices(lm, batch) + _attention(lm, batch) - last_matrices


def _matrices(lm: LanguageShape, batch: MicroBatch) -> float:
    return 2 * batch.examples * batch.length * lm.layers * lm.weights


def _attention(lm: LanguageShape, batch: MicroBatch) -> float:
    return lm.layers * 4 * batch.examples * batch.length**2 * lm.queries


def _head(lm: LanguageShape, batch: MicroBatch) -> float:
    return 2 * batch.positions * lm.width * lm.vocabulary
