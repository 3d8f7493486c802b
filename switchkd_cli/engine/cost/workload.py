"""What one micro-batch asks of the models: the same for its operations and for its memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """A micro-batch: B `rows` padded to T `length`, P `pictures`, N `kept` positions that a head is asked at.

    Means over many micro-batches need not be whole. `masked`: some row is padded, or turns are `apart` (don't see one
    another).
    """

    rows: float
    pictures: float
    length: float
    kept: float
    masked: bool = True
    apart: bool = False


@dataclass(frozen=True)
class Terms:
    """Which logits paths a stage computes, which of the student's parts it trains, and its losses.

    `losses`: of each term, its loss and the share of the kept positions that it looks at. `recomputed`: whose layers are
    computed again in the backward pass and keep their inputs only (V_S: vision, L_S: student, L_T: switch).
    """

    paths: frozenset[str]
    train: frozenset[str]
    losses: tuple[tuple[str, float], ...]
    recomputed: frozenset[str] = frozenset()

    @property
    def student(self) -> bool:
        return "student" in self.paths

    @property
    def teacher(self) -> bool:
        return "teacher" in self.paths

    @property
    def switch(self) -> bool:
        return "switch" in self.paths

    def trains(self, part: str) -> bool:
        return part in self.train
