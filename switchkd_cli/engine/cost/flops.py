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

Layers under activation checkpointing are computed once more in the backward pass, but for the last matrix of each: torch
stops when all that the gradient needs is there, and nothing needs its product.
"""

from __future__ import annotations

from switchkd_cli.engine.cost.shape import Projector, Reader, Shape, Tower
from switchkd_cli.engine.cost.workload import Rows, Terms


def step(student: Shape, teacher: Shape | None, rows: Rows, terms: Terms) -> dict[str, float]:
    """Operations of one micro-batch by what they are for, e.g. "switch: backward"."""
    flops: dict[str, float] = {}
    seen, ours, read = student.vision, student.projector, student.language
    vision = terms.trains("vision")
    if terms.student or terms.switch:
        flops["vision: forward"] = see(seen, rows)
    if terms.student:
        flops["student: forward"] = project(ours, rows) + decode(read, rows)
        flops["student: backward"] = project_backward(
            ours, rows, weights=terms.trains("projector"), inputs=vision
        ) + decode_backward(read, rows, weights=terms.trains("language"))
    if teacher is not None and terms.teacher:
        flops["teacher: forward"] = (
            see(teacher.vision, rows) + project(teacher.projector, rows) + decode(teacher.language, rows)
        )
    if teacher is not None and terms.switch:
        flops["switch: forward"] = project(teacher.projector, rows) + decode(teacher.language, rows)
        flops["switch: backward"] = project_backward(
            teacher.projector, rows, weights=False, inputs=True
        ) + decode_backward(teacher.language, rows, weights=False)
    if vision:
        flops["vision: backward"] = see_backward(seen, rows)
    if vision and "vision" in terms.recomputed:
        flops["vision: recomputed"] = see_again(seen, rows)
    if terms.student and "student" in terms.recomputed:
        flops["student: recomputed"] = decode_again(read, rows)
    if teacher is not None and terms.switch and "switch" in terms.recomputed:
        flops["switch: recomputed"] = decode_again(teacher.language, rows)
    return flops


def see(tower: Tower, rows: Rows) -> float:
    """V forward, up to its feature layer: what lies behind it is not computed."""
    return patches(tower, rows) + see_layers(tower, rows)


def see_backward(tower: Tower, rows: Rows) -> float:
    """V backward, weights and inputs of the layers in front of the feature layer; pictures need no gradient."""
    return patches(tower, rows) + 2 * see_layers(tower, rows)


def see_again(tower: Tower, rows: Rows) -> float:
    """V's layers for their gradient, without the last matrix of each."""
    last = 2 * rows.pictures * tower.positions * tower.width * tower.inner
    return see_layers(tower, rows) - tower.used * last


def see_layers(tower: Tower, rows: Rows) -> float:
    positions = rows.pictures * tower.positions
    return tower.used * (2 * positions * tower.weights + 4 * positions * tower.positions * tower.width)


def patches(tower: Tower, rows: Rows) -> float:
    """The convolution that cuts a picture into patches."""
    count = rows.pictures * (tower.image // tower.patch) ** 2
    return 2 * count * 3 * tower.patch**2 * tower.width


def project(projector: Projector, rows: Rows) -> float:
    """P forward: two matrices, and a depth-wise 3x3 convolution where tokens are pooled."""
    features = rows.pictures * projector.features
    first, second = projector.seen * projector.width, projector.width**2
    return 2 * features * (first + second) + _grid(projector, rows)


def project_backward(projector: Projector, rows: Rows, *, weights: bool, inputs: bool) -> float:
    """P backward: with neither gradient wanted, none of it is computed."""
    features = rows.pictures * projector.features
    first, second = projector.seen * projector.width, projector.width**2
    passed = weights or inputs
    matrices = weights * (first + second) + passed * second + inputs * first
    return 2 * features * matrices + (weights + passed) * _grid(projector, rows)


def decode(reader: Reader, rows: Rows) -> float:
    """L forward: every layer at every position, the head at the kept positions only."""
    return decode_layers(reader, rows) + _head(reader, rows)


def decode_backward(reader: Reader, rows: Rows, *, weights: bool) -> float:
    """L backward: always the gradient of its input, as something in front of it is trained."""
    matrices = 2 * rows.rows * rows.length * reader.layers * reader.weights + _head(reader, rows)
    return (1 + weights) * matrices + 2 * _attention(reader, rows)


def decode_again(reader: Reader, rows: Rows) -> float:
    """L's layers for their gradient, without the last matrix of each."""
    last = 2 * rows.rows * rows.length * reader.width * reader.inner
    return decode_layers(reader, rows) - reader.layers * last


def decode_layers(reader: Reader, rows: Rows) -> float:
    return 2 * rows.rows * rows.length * reader.layers * reader.weights + _attention(reader, rows)


def _attention(reader: Reader, rows: Rows) -> float:
    return reader.layers * 4 * rows.rows * rows.length**2 * reader.queries


def _head(reader: Reader, rows: Rows) -> float:
    return 2 * rows.kept * reader.width * reader.vocabulary


def _grid(projector: Projector, rows: Rows) -> float:
    return 2 * rows.pictures * projector.tokens * 9 * projector.width if projector.pooled else 0.0
