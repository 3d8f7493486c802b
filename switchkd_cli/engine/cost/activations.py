"""Bytes that a forward pass leaves for the backward pass.

These follow from what transformers' modules save, counted with autograd's hooks on small models (tests/cost/test_cost_memory.py
does so again). Per position of a layer of width d and inner width f, with r bytes a number in the residual stream
and c in a matrix product:

    language  norms        2 (4 d + 4), and 2 r d where their weights are trained
              matrices     their inputs where trained: (3 + 2) c d if each is cast by itself, else 2 r d
              attention    query, key, value, output c each (keys repeated for every head under a mask), 4 a head
              mask         c T, once for all layers where turns are apart and nothing is cast
              gated MLP    3 c f, and c f where trained
    vision    norms        2 r d
              matrices     their inputs: (3 + 1) c d if each is cast by itself, else 2 r d
              attention    4 c d
              MLP          2 c f; 3 c f with CLIP's quick GELU

A frozen part through which no gradient goes leaves nothing. A layer under activation checkpointing leaves its input,
r d; beside all of them stand once the mask (T, or r T where turns are apart) and the rotary angles (2 r h, h the width of
a head). In the backward pass one layer at a time holds the rest (`recomputed_layer`).
"""

from __future__ import annotations

from dataclasses import dataclass

from switchkd_cli.engine.cost.shape import Projector, Reader, Shape, Tower
from switchkd_cli.engine.cost.workload import Rows, Terms

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


def activations(
    student: Shape,
    teacher: Shape | None,
    rows: Rows,
    terms: Terms,
    precision: Precision,
) -> dict[str, float]:
    """Bytes of one micro-batch by path."""
    kept: dict[str, float] = {}
    vision, language = terms.trains("vision"), terms.trains("language")
    again = terms.recomputed
    if vision:
        kept["vision"] = tower(student.vision, rows, precision, "vision" in again)
    if terms.student:
        kept["student"] = projector(
            student.projector, rows, precision, trained=terms.trains("projector"), passed=vision
        ) + reader(student.language, rows, precision, language, "student" in again)
    if teacher is not None and terms.switch:
        kept["switch"] = projector(teacher.projector, rows, precision, trained=False, passed=True) + reader(
            teacher.language, rows, precision, False, "switch" in again
        )
    return kept


def recomputed_layer(
    student: Shape, teacher: Shape | None, rows: Rows, terms: Terms, precision: Precision
) -> float:
    """The most bytes that one layer holds while it is computed again; 0 where none is.

    Its cast matrices and the gradient that has come to it are counted.
    """
    held, again = [0.0], terms.recomputed
    positions, weight = rows.rows * rows.length, precision.compute * precision.cast
    if "vision" in again and terms.trains("vision"):
        seen = student.vision
        layer = _tower_layer(seen, precision) + precision.residual * seen.width
        held.append(rows.pictures * seen.positions * layer + weight * seen.weights)
    readers = [(student.language, terms.trains("language"))] if "student" in again and terms.student else []
    if teacher is not None and terms.switch and "switch" in again:
        readers.append((teacher.language, False))
    for read, trained in readers:
        beside = rows.masked * precision.compute * rows.length + precision.residual * read.width
        layer = _reader_layer(read, rows, precision, trained) + beside
        held.append(positions * layer + weight * read.weights)
    return max(held)


def casts(
    student: Shape, teacher: Shape | None, terms: Terms, precision: Precision, *, autocast: bool = False
) -> float:
    """Bytes of the cast matrices that the graph holds (autocast casts weights anew for every micro-batch).

    A layer that is recomputed leaves none, but `autocast` itself holds those of trained weights to the forward's end.
    """
    if not precision.cast:
        return 0.0
    entries, seen, vision = 0, student.vision, terms.trains("vision")

    def held(what: str, trained: bool) -> bool:
        return what not in terms.recomputed or (autocast and trained)

    if vision:
        entries += held("vision", True) * seen.used * seen.weights + 3 * seen.patch**2 * seen.width
    if terms.student:
        layers = held("student", terms.trains("language"))
        entries += _matrices(student, vision or terms.trains("projector"), layers)
    if teacher is not None and terms.switch:
        entries += _matrices(teacher, True, held("switch", False))
    return precision.compute * entries


def tower(t: Tower, rows: Rows, p: Precision, again: bool = False) -> float:
    """V up to its feature layer, all of it trained; its layers computed `again` in the backward pass or not."""
    layer = p.residual * t.width if again else _tower_layer(t, p)
    norm = t.normed * p.residual * t.width
    pictures = rows.pictures * 3 * t.image**2 * p.compute
    return rows.pictures * t.positions * (t.used * layer + norm) + pictures


def _tower_layer(t: Tower, p: Precision) -> float:
    """Bytes a position."""
    inner = SAVED_BY_MLP.get(t.activation, 2)
    inputs = 4 * p.compute if p.cast else 2 * p.residual
    return t.width * (2 * p.residual + inputs + 4 * p.compute) + inner * p.compute * t.inner


def projector(m: Projector, rows: Rows, p: Precision, *, trained: bool, passed: bool) -> float:
    """P: the input of its GELU, the inputs of its matrices where they are trained, those of pooling and convolution."""
    if not (trained or passed):
        return 0.0
    features = rows.pictures * m.features
    pooled = m.pooled * rows.pictures * (m.features + m.tokens) * m.width
    return p.compute * (features * (m.width + trained * (m.seen + m.width)) + pooled)


def reader(r: Reader, rows: Rows, p: Precision, trained: bool, again: bool = False) -> float:
    """L, a gradient going through to its input; `trained` or frozen. The head's input is at kept positions only."""
    if again:
        beside = 2 * p.residual * r.queries // r.heads
        beside += rows.masked * (p.residual if rows.apart else 1) * rows.length
        body = r.layers * p.residual * r.width + beside
    else:
        masks = rows.masked * (1 if rows.apart and not p.cast else r.layers)
        body = r.layers * _reader_layer(r, rows, p, trained) + masks * p.compute * rows.length
    head = trained * rows.kept * r.width * p.compute
    return rows.rows * rows.length * (body + _norm(r, p, trained)) + head


def _reader_layer(r: Reader, rows: Rows, p: Precision, trained: bool) -> float:
    """Bytes a position, the mask aside."""
    inputs = trained * r.width * (5 * p.compute if p.cast else 2 * p.residual)
    keys = r.queries if rows.masked else r.keys
    attention = p.compute * (2 * r.queries + 2 * keys) + 4 * r.heads
    return 2 * _norm(r, p, trained) + inputs + attention + (3 + trained) * p.compute * r.inner


def _norm(r: Reader, p: Precision, trained: bool) -> float:
    """Bytes a position."""
    return 4 * r.width + 4 + trained * p.residual * r.width


def _matrices(shape: Shape, projected: bool, layers: bool) -> int:
    """Entries of the matrices of L's head, of its layers where they are held, and of P where a gradient goes through it."""
    r, m = shape.language, shape.projector
    held = layers * r.layers * r.weights + r.width * r.vocabulary
    return held + projected * m.width * (m.seen + m.width)
