"""Where an objective's terms seek knees: in whose sorted logits, at which positions, between which bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switchkd_cli import registry
from switchkd_cli.engine.losses.ops.knee import find_knee
from switchkd_cli.engine.losses.ops.leaders import BLOCK
from switchkd_cli.engine.losses.ops.vocabulary import count_columns, mask_padding, padding_columns
from switchkd_cli.recipe.schema import Term


@dataclass(frozen=True)
class Sought:
    """What a loss does with the rows of logits that lead it."""

    path: str
    """Whose logits lead."""
    on: str
    """At which positions."""
    window: int | None
    min_k: int
    max_k: int | None


@dataclass(frozen=True)
class Knees:
    """Of N rows of logits."""

    knee: Tensor
    """[N] 1 + the knee's rank: how many logits lie at or before it."""
    k: Tensor
    """[N] what the loss takes: the knee within its bounds."""
    mass: Tensor
    """[N] probability of the top k."""


def sought(terms: Sequence[Term]) -> list[tuple[str, Sought]]:
    """The terms' names with each of their knees, as their losses declare (`registry.Signature.knees`)."""
    found = []
    for term in terms:
        declared = registry.signature("loss", term.loss)
        for side in declared.leaders(term.parameters):
            given = {
                name: term.parameters.get(name, declared.keywords[name].default) for name in registry.BOUNDS
            }
            found.append((term.name, Sought(term.of if side == "student" else term.to, term.on, **given)))
    return found


@torch.no_grad()
def knees(logits: Tensor, at: Sought) -> Knees:
    """The knees of rows of logits [N, V], a block of rows at a time."""
    blocks = [_knees(block, at) for block in logits.split(max(1, BLOCK // logits.shape[-1]))]
    return together(blocks)


def together(some: Sequence[Knees]) -> Knees:
    """Those of several blocks of rows as one."""
    return Knees(*(torch.cat(of) for of in zip(*((k.knee, k.k, k.mass) for k in some), strict=True)))


def _knees(logits: Tensor, at: Sought) -> Knees:
    absent = padding_columns(logits)
    ranked, rank = find_knee(logits, absent, window=at.window, at_least=at.min_k)
    knee = 1 + rank
    k = knee.clamp(at.min_k, at.max_k).minimum(count_columns(logits, absent))
    behind = torch.arange(ranked.logits.shape[-1], device=k.device) >= k[:, None]
    top = ranked.logits.masked_fill(behind, -torch.inf).logsumexp(-1)
    return Knees(knee, k, mass=(top - mask_padding(logits, absent).logsumexp(-1)).exp())
