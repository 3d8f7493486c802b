"""The highest logits that a loss uses are those of the sorted row: ids and k, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from switchkd_cli.engine.losses.dbild import bild, dbild
from switchkd_cli.engine.losses.ops import knee
from switchkd_cli.engine.losses.ops.knee import knee_rank
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, padding_columns
from tests.support.reference_losses import language_logits, value_and_gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def sorted_whole(logits, absent):
    """The reference: sort the row; equal logits keep the order of their ids, padding columns come last."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.masked_fill(absent, FLOOR).sort(dim=-1, descending=True, stable=True)


def expected(logits, absent, window=None, min_k=3, max_k=None):
    """Return k [N] and the list of each row's ids, from the sorted row."""
    values, ids = sorted_whole(logits, absent)
    k = (1 + knee_rank(values, window)).clamp(min=min_k, max=max_k).minimum((~absent).sum(-1))
    return k.tolist(), [row[:n].tolist() for row, n in zip(ids, k.tolist(), strict=True)]


def taken(ids, k):
    return k.tolist(), [row[:n].tolist() for row, n in zip(ids, k.tolist(), strict=True)]


def agrees(logits, absent=None, **bounds):
    """Padding columns, if not given, are those written as padding."""
    bounds = {"window": None, "min_k": 3, "max_k": None} | bounds
    mask = logits.float() <= FLOOR if absent is None else absent
    found = padding_columns(logits) if absent is None else absent
    assert taken(*knee.TopKAtKnee(**bounds)(logits, found)) == expected(logits, mask, **bounds)


def rows_of(shape, rows, columns, seed):
    """Logits of many shapes: the knee near the top, in the middle, nowhere; steps, ties, one value; a large scale."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    uniform = torch.rand(rows, columns, generator=generator)
    return {
        "language": lambda: language_logits(rows, columns, seed, torch.float32)[0],
        "gaussian": lambda: normal,
        "linear": lambda: uniform,
        "exponential": lambda: -20 * uniform.log(),
        "steps": lambda: (3 * normal).round(),
        "two values": lambda: (uniform > 0.7).float(),
        "one value": lambda: torch.full((rows, columns), 2.5),
        "both zeros": lambda: torch.where(uniform > 0.5, 0.0, -0.0),
        "two heaps": lambda: torch.where(uniform > 0.9, 30 + normal, normal),
        "far off": lambda: 1000 + 0.01 * normal,
        "huge": lambda: 1e37 * normal,
        "tiny": lambda: 1e-37 * normal,
        "sorted": lambda: normal.sort(-1).values,
    }[shape]()


SHAPES = st.sampled_from(
    ("language", "gaussian", "linear", "exponential", "steps", "two values", "one value", "both zeros")
    + ("two heaps", "far off", "huge", "tiny", "sorted")
)


@given(
    shape=SHAPES,
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 4),
    columns=st.integers(1, 40) | st.integers(100, 3000),
    window=st.none() | st.integers(1, 80),
    min_k=st.integers(1, 60),
    over=st.none() | st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=200, deadline=None)
def test_ids_and_k_are_those_of_the_sorted_row(shape, seed, rows, columns, window, min_k, over, dtype):
    logits = rows_of(shape, rows, columns, seed).to(dtype)
    logits = torch.where(logits.isfinite(), logits, 0.0)  # float16 has no 1e37
    max_k = None if over is None else min_k + over
    agrees(logits, window=window, min_k=min_k, max_k=max_k)


@given(
    seed=st.integers(0, 10**6),
    columns=st.integers(1, 40) | st.integers(100, 2000),
    share=st.sampled_from([0.002, 0.3, 0.99]),
    window=st.none() | st.integers(1, 30),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=60, deadline=None)
def test_absent_columns_are_as_in_the_sorted_row(seed, columns, share, window, dtype):
    logits = language_logits(3, columns, seed, torch.float32)[0].to(dtype)
    absent = torch.rand(3, columns, generator=torch.Generator().manual_seed(seed)) < share
    agrees(logits, absent, window=window)


@given(
    seed=st.integers(0, 10**6),
    columns=st.integers(1, 40) | st.integers(100, 2000),
    broken=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 10**4), st.sampled_from([torch.nan, torch.inf])), min_size=1
    ),
    window=st.none() | st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_broken_logits_are_as_in_the_sorted_row(seed, columns, broken, window):
    logits = language_logits(3, columns, seed, torch.float32)[0]
    for row, column, value in broken:
        logits[row, column % columns] = value
    agrees(logits, window=window)


@given(
    shape=SHAPES,
    seed=st.integers(0, 10**6),
    columns=st.integers(1, 2000),
    k=st.integers(1, 100),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=60, deadline=None)
def test_the_top_k_are_those_of_the_sorted_row(shape, seed, columns, k, dtype):
    logits = rows_of(shape, 3, columns, seed).to(dtype)
    logits = torch.where(logits.isfinite(), logits, 0.0)
    absent = logits.float() <= FLOOR
    ids, found = knee.TopKAtKnee(window=k, min_k=k, max_k=k)(logits, padding_columns(logits))
    assert found.tolist() == [min(k, n) for n in (~absent).sum(-1).tolist()]
    order = [row[:n].tolist() for row, n in zip(sorted_whole(logits, absent).indices, found, strict=True)]
    assert taken(ids, found)[1] == order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 256])
def test_a_large_vocabulary_agrees(dtype, window):
    generator = torch.Generator().manual_seed(3)
    logits = 2.2 * torch.randn(7, 151_936, generator=generator)
    logits[:, :300] += torch.linspace(28, 4, 300)
    agrees(logits.to(dtype), window=window)


def test_a_large_vocabulary_is_not_sorted(monkeypatch):
    def refuse(logits):
        raise AssertionError("sorted whole rows")

    monkeypatch.setattr(knee, "sort_whole_rows", refuse)
    teacher, student = language_logits(2, 20_000, seed=4, dtype=torch.float32)
    ranked, *_ = knee.TopKAtKnee(window=None, min_k=3, max_k=None).search(teacher, None)
    k = knee.TopKAtKnee(window=None, min_k=3, max_k=None)(teacher, None)[1]
    assert ranked.logits.shape[1] < 2 * k.max()
    for loss, bounds in ((dbild, {}), (dbild, {"window": 64}), (bild, {})):
        assert loss(teacher, student, **bounds).isfinite().all()


@pytest.mark.parametrize("loss", [dbild, bild])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_sorted_row(loss, dtype, monkeypatch):
    teacher, student = language_logits(5, 3000, seed=6, dtype=dtype)
    found = value_and_gradient(loss, teacher, student)
    monkeypatch.setattr(knee, "_sort_chosen", lambda logits, chosen: knee.sort_whole_rows(logits))
    for new, old in zip(found, value_and_gradient(loss, teacher, student), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


def test_logits_that_lie_across_memory_agree():
    logits = language_logits(900, 6, seed=8, dtype=torch.float32)[0].T
    agrees(logits)
    agrees(logits, window=20)


def test_no_column_is_absent_where_none_is_padding():
    logits = language_logits(2, 30, seed=1)[0]
    assert padding_columns(logits, logits) is None
    logits[1, 4] = -torch.inf
    assert padding_columns(logits * 1, logits).nonzero().tolist() == [[1, 4]]
