"""Means, intervals and p-values of small random cases against scipy called directly, and what must hold of all of them."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from switchkd_cli.report.document import Number
from switchkd_cli.report.results.row_runs import over_seeds, paired_difference
from switchkd_cli.report.stats import significance
from switchkd_cli.report.stats.significance import PairedUnits, holm, p_value
from switchkd_cli.report.stats.stored_answers import Units

SEVERAL = settings(max_examples=20, deadline=None)
SCORES = st.floats(0, 100, allow_nan=False).map(lambda x: round(x, 3))
QUARTERS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # exact in binary: ties are ties
ALWAYS = {"n_resamples": np.inf, "permutation_type": "samples"}
from tests.support.paired import difference_of, ends_of, gains_of


@pytest.fixture(scope="module", autouse=True)
def fewer_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "RESAMPLES", 999)
        yield


def units(scores) -> Units:
    gained = np.asarray(scores, dtype=float)
    return Units(gained, np.ones(len(gained)), np.zeros(len(gained), int), single=True)


def pair(ours, theirs) -> PairedUnits:
    """Two rows with a run for each line of scores."""
    return PairedUnits(tuple(map(units, ours)), tuple(map(units, theirs)))


def lines(of, fewest=2, most=8, runs=1):
    """Scores of two rows with `runs` runs each, all of one length."""
    length = st.integers(fewest, most)
    row = length.flatmap(lambda n: st.lists(st.lists(of, min_size=n, max_size=n), min_size=2 * runs, max_size=2 * runs))
    return row.map(lambda scores: (scores[:runs], scores[runs:]))


@SEVERAL
@given(st.lists(SCORES, min_size=2, max_size=8))
def test_a_mean_over_seeds_has_scipys_t_interval(values):
    assume(np.ptp(values) > 0.01)
    found, direct = over_seeds(values), stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.ends.low, found.ends.high) == pytest.approx(tuple(direct))
    assert found.value == pytest.approx(np.mean(values))


@given(st.floats(-9, 9), st.floats(0, 9) | st.none())
def test_one_rule_says_what_is_clear_in_every_cell_and_verdict(mean, half):
    number = Number(mean, half, 3, difference=True, detectable=1.0)
    expected = 0 if half is None or abs(mean) <= half else 1 if mean > 0 else -1
    assert number.side == expected
    if half is not None:
        assert bool(number.ends.mde) == (expected == 0)


@SEVERAL
@given(*[st.dictionaries(st.integers(0, 9), SCORES, max_size=6)] * 2)
def test_a_paired_difference_is_scipys_over_the_seeds_in_common(ours, theirs):
    common = sorted(ours.keys() & theirs.keys())
    found = paired_difference(ours, theirs)
    if not common:
        assert found is None
        return
    a, b = np.array([ours[s] for s in common]), np.array([theirs[s] for s in common])
    assert (found.seeds, found.value) == (len(common), pytest.approx(float(np.mean(a - b))))
    if len(common) == 1:
        assert found.interval is None
    elif np.ptp(a - b) > 0.01:
        low, high = stats.ttest_rel(a, b).confidence_interval()
        assert found.interval == pytest.approx((high - low) / 2)


@SEVERAL
@given(lines(st.sampled_from([0.0, 1.0]), most=40))
def test_right_and_wrong_answers_get_scipys_binomial_test_of_those_that_differ(rows):
    a, b = (np.array(row[0]) for row in rows)
    better, worse = int((a > b).sum()), int((a < b).sum())
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert p_value([pair(*rows)]) == pytest.approx(expected)


@SEVERAL
@given(lines(QUARTERS, most=9, runs=2))
def test_few_graded_answers_get_scipys_exact_permutation_test(rows):
    """Of the mean over two runs a side: the units are exchanged in both at once."""
    gains = np.mean(rows[0], axis=0) - np.mean(rows[1], axis=0)
    direct = stats.permutation_test((gains,), lambda x, axis: np.mean(x, axis=axis), vectorized=True, **ALWAYS)
    assert p_value([pair(*rows)]) == pytest.approx(direct.pvalue)


@SEVERAL
@example(([[0.0, 0.0, 0.0]], [[0.0, 0.25, 0.5]]), ([[0.0, 0.25, 0.5]], [[0.0, 0.0, 0.0]]))
@given(lines(QUARTERS, most=4), lines(QUARTERS, most=4))
def test_of_several_benchmarks_the_average_is_permuted_with_each_weighed_alike(one, other):
    gains = [np.array(a[0]) - np.array(b[0]) for a, b in (one, other)]
    weighed = np.concatenate([each * (12 // len(each)) for each in gains])  # thirds would not tie in binary
    direct = stats.permutation_test((weighed,), lambda x, axis: np.sum(x, axis=axis), vectorized=True, **ALWAYS)
    assert p_value([pair(*one), pair(*other)]) == pytest.approx(direct.pvalue)


@SEVERAL
@given(lines(QUARTERS, most=12, runs=2))
def test_the_interval_is_scipys_percentile_bootstrap_of_the_differences(rows):
    gains = np.mean(rows[0], axis=0) - np.mean(rows[1], axis=0)
    direct = stats.bootstrap(
        (gains,),
        np.mean,
        n_resamples=significance.RESAMPLES,
        batch=significance.BATCH // len(gains),
        method="percentile",
        rng=np.random.default_rng(significance.SEED),
    ).confidence_interval
    assert ends_of([pair(*rows)]) == pytest.approx((100 * direct.low, 100 * direct.high))


@SEVERAL
@given(lines(QUARTERS, most=12, runs=2))
def test_the_other_way_round_it_is_the_same_with_the_other_sign(rows):
    there, back = pair(*rows), pair(*rows[::-1])
    low, high = ends_of([there])
    assert ends_of([back]) == pytest.approx((-high, -low))
    assert p_value([back]) == p_value([there])
    assert low - 1e-9 <= difference_of(there) <= high + 1e-9 or np.ptp(gains_of(there)) > 0


@SEVERAL
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holms_correction_is_the_textbooks_and_knows_no_order(values, random):
    rising = sorted(values)
    steps = [max((len(rising) - i) * p for i, p in enumerate(rising[: k + 1])) for k in range(len(rising))]
    expected = {p: min(1.0, step) for p, step in zip(rising, steps, strict=True)}
    assert holm(values) == pytest.approx([expected[p] for p in values])
    shuffled = random.sample(range(len(values)), len(values))
    assert holm([values[i] for i in shuffled]) == pytest.approx([holm(values)[i] for i in shuffled])
