"""Positions of examples: side by side, and in spans of bytes that two models' tokens end together.

A span's number, of the token that each position predicts, is of one example alone; numbers [N] increase; -1 is in no span. Both
models have the same spans, each with a token at least.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d
from torch.nn.utils.rnn import pad_sequence


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
    """Return which positions in either are those of spans with one token in both, [N] and [M] bool: as many, in one order."""
    first, second = _alone(one), _alone(other)
    return first & torch.isin(one, other[second]), second & torch.isin(other, one[first])


def _alone(spans: Tensor) -> Tensor:
    around = torch.cat([spans.new_full((1,), -1), spans, spans.new_full((1,), -1)])
    return (spans >= 0) & (spans != around[:-2]) & (spans != around[2:])


def group_by_row(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return values [N, ...] as [R, L, ...], one example in each of R, padded with 0, and a mask [R, L] of the values.

    ``rows`` [N] int64 says which example each value belongs to; equal ones are neighbours. ``out[mask]`` is ``values``.
    """
    _, count = rows.unique_consecutive(return_counts=True)
    count = count if len(count) else count.new_zeros(1)  # no value: one example without any
    padded = pad_sequence(values.split(count.tolist()), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=rows.device) < count[:, None]


def pooled(values: Tensor, rows: Tensor, to: Tensor) -> Tensor:
    """Return values [M, D] as [N, D]: of each example as many as it has in `to` [N], means of neighbours.

    ``rows`` [M] and `to` say which example each belongs to, and have the same examples in one order.
    """
    counts, wanted = (of.unique_consecutive(return_counts=True)[1].tolist() for of in (rows, to))
    parts = zip(values.split(counts), wanted, strict=True)
    return torch.cat([adaptive_avg_pool1d(part.mT, count).mT for part, count in parts]) if counts else values
