"""Spans of bytes that two models' tokens end together: [N] numbers, increasing, of the token that each position predicts.

A number is of one example alone; -1 is in no span. Both models have the same spans, each with a token at least.
"""

import torch
from torch import Tensor


def first_positions(spans: Tensor) -> Tensor:
    """Return which positions predict the first token of a span, [C]: both models have read the same bytes before it."""
    before = torch.cat([spans.new_full((1,), -1), spans[:-1]])
    return ((spans >= 0) & (spans != before)).nonzero()[:, 0]


def sum_over_spans(values: Tensor, spans: Tensor) -> Tensor:
    """Return the sum of values [N] over the positions of each span, [C]."""
    inside = spans >= 0
    found, place = spans[inside].unique(return_inverse=True)
    return values.new_zeros(len(found)).index_add(0, place, values[inside])


def span_rows(spans: Tensor) -> Tensor:
    """Return the row of the batch that each span is of, [C]; see `Batch.predicted_spans`."""
    return spans[first_positions(spans)] >> 32


def single_tokens(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions in either of the spans that have one token in both, [P] and [P], in the same order."""
    known = torch.cat([one[one >= 0], other[other >= 0]]).unique()
    sides = []
    for spans in (one, other):
        inside = (spans >= 0).nonzero()[:, 0]
        place = torch.searchsorted(known, spans[inside])
        sides.append((inside, place, torch.zeros_like(known).index_add(0, place, torch.ones_like(place))))
    single = (sides[0][2] == 1) & (sides[1][2] == 1)
    first, second = (inside[single[place]] for inside, place, _ in sides)
    return first, second
