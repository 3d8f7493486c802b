"""The knees of an objective's terms: in whose sorted logits, at which positions, within which bounds; their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.losses.ops.knee import find_knee
from switchkd_cli.engine.losses.ops.leaders import BLOCK
from switchkd_cli.engine.losses.ops.vocabulary import count_columns, mask_padding, padding_columns
from switchkd_cli.recipe.schema import Term


@dataclass(frozen=True)
class KneeSpec:
    """Where a loss takes the knee of rows of logits."""

    path: str
    """Whose logits lead."""
    on: str
    """At which positions."""
    window: int | None
    min_k: int
    max_k: int | None


class KneeStats(NamedTuple):
    """Of N rows of logits."""

    knee: Tensor
    """[N] 1 + the knee's rank: how many logits lie at or before it."""
    k: Tensor
    """[N] what the loss takes: the knee within its bounds."""
    mass: Tensor
    """[N] probability of the top k."""


def knee_specs(terms: Sequence[Term]) -> list[tuple[str, KneeSpec]]:
    """Return the terms' names with each of their knees, as their losses declare (`registry.Signature.leaders`)."""
    specs = []
    for term in terms:
        signature = registry.signature("loss", term.loss)
        for side in signature.leaders(term.parameters):
            bounds = {name: term.parameters.get(name, signature.keywords[name].default) for name in registry.BOUNDS}
            specs.append((term.name, KneeSpec(term.of if side == "student" else term.to, term.on, **bounds)))
    return specs


@torch.no_grad()
def measure_knees(logits: Tensor, spec: KneeSpec) -> KneeStats:
    """Return the knees of rows of logits [N, V], computed a block of rows at a time."""
    return concatenate([_of_block(b, spec) for b in logits.split(max(1, BLOCK // logits.shape[-1]))])


def concatenate(blocks: Sequence[KneeStats]) -> KneeStats:
    """Return the statistics of several blocks of rows as one."""
    return KneeStats(*(torch.cat(column) for column in zip(*blocks, strict=True)))


def _of_block(logits: Tensor, spec: KneeSpec) -> KneeStats:
    padding = padding_columns(logits)
    top, rank = find_knee(logits, padding, window=spec.window, at_least=spec.min_k)
    knee = 1 + rank
    k = knee.clamp(spec.min_k, spec.max_k).minimum(count_columns(logits, padding))
    beyond_k = torch.arange(top.logits.shape[-1], device=k.device) >= k[:, None]
    log_top = top.logits.masked_fill(beyond_k, -torch.inf).logsumexp(-1)
    return KneeStats(knee, k, mass=(log_top - mask_padding(logits, padding).logsumexp(-1)).exp())
