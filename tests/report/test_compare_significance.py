"""Intervals and p-values against scipy used directly, against every case counted out, and over simulated runs."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from switchkd_cli.report.stats import significance
from switchkd_cli.report.stats.significance import PairedUnits, holm, p_value
from switchkd_cli.report.stats.stored_answers import Units
from tests.support.paired import difference_of, ends_of


def mean_of(*values, single=True) -> Units:
    scores = np.asarray(values, dtype=float)
    return Units(scores, np.ones(len(scores)), np.zeros(len(scores), int), single)


def f1_of(said, true) -> Units:
    said, true = np.asarray(said, dtype=float), np.asarray(true, dtype=float)
    return Units(2 * said * true, said + true, np.zeros(len(said), int), single=False)


def one(ours: Units, theirs: Units) -> PairedUnits:
    return PairedUnits((ours,), (theirs,))


def f1(said, true) -> float:
    """The textbook's."""
    right = sum(s and t for s, t in zip(said, true, strict=True))
    return 2 * right / (sum(said) + sum(true)) if right else 0.0


def test_right_and_wrong_answers_get_mcnemars_exact_test():
    ours = [1] * 9 + [0] * 3 + [1] * 20 + [0] * 8
    theirs = [0] * 9 + [1] * 3 + [1] * 20 + [0] * 8
    # 12 discordant, 9 to 3: twice the binomial tail, by hand 2 x 299 / 4096
    assert p_value([one(mean_of(*ours), mean_of(*theirs))]) == pytest.approx(2 * 299 / 4096)
    assert p_value([one(mean_of(*ours), mean_of(*theirs))]) == pytest.approx(stats.binomtest(9, 12).pvalue)


def test_runs_that_answer_alike_differ_by_nothing():
    same = one(mean_of(1, 0, 1, 1), mean_of(1, 0, 1, 1))
    assert p_value([same]) == 1 and ends_of([same]) == (0, 0)


def test_graded_scores_get_every_exchange_counted():
    random = np.random.default_rng(0)
    ours, theirs = random.random(9), random.random(9) - 0.25
    gains = ours - theirs
    sums = [sum(s * g for s, g in zip(signs, gains, strict=True)) for signs in product((1, -1), repeat=9)]
    expected = np.mean([abs(s) >= abs(gains.sum()) - 1e-12 for s in sums])
    assert p_value([one(mean_of(*ours), mean_of(*theirs))]) == pytest.approx(expected)


def test_many_graded_scores_get_scipys_permutation_test():
    random = np.random.default_rng(3)
    ours = random.integers(0, 4, 150) / 3
    theirs = np.clip(ours + random.normal(-0.03, 0.2, 150), 0, 1)
    direct = stats.permutation_test(
        (ours - theirs,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(9)
    ).pvalue
    assert 0.01 < direct < 0.5  # the case says something
    assert p_value([one(mean_of(*ours), mean_of(*theirs))]) == pytest.approx(direct, abs=0.02)


def test_f1_is_computed_anew_for_every_exchange():
    true = [1, 1, 1, 0, 0, 1, 0, 1, 0]
    ours, theirs = [1, 1, 1, 0, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1, 0, 0]
    seen = f1(ours, true) - f1(theirs, true)
    found = []
    for swap in product((False, True), repeat=9):
        a = [t if s else o for s, o, t in zip(swap, ours, theirs, strict=True)]
        b = [o if s else t for s, o, t in zip(swap, ours, theirs, strict=True)]
        found.append(f1(a, true) - f1(b, true))
    expected = np.mean(np.abs(found) >= abs(seen) - 1e-12)
    pair = one(f1_of(ours, true), f1_of(theirs, true))
    assert difference_of(pair) == pytest.approx(100 * seen)
    assert p_value([pair]) == pytest.approx(expected)


def test_the_interval_of_a_mean_is_that_of_the_items_differences():
    random = np.random.default_rng(4)
    ours, theirs = random.random(400), random.random(400) * 0.8
    gains = 100 * (ours - theirs)
    half = 1.96 * gains.std() / 20
    low, high = ends_of([one(mean_of(*ours), mean_of(*theirs))])
    assert (low, high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.15 * half)


def test_pairing_narrows_the_interval():
    random = np.random.default_rng(5)
    theirs = random.integers(0, 2, 200)
    ours = np.where(random.random(200) < 0.05, 1, theirs)  # agrees nearly everywhere
    low, high = ends_of([one(mean_of(*ours), mean_of(*theirs))])
    apart = 2 * 196 * np.sqrt(ours.var() / 200 + theirs.var() / 200)
    assert high - low < apart / 3


def test_the_interval_of_f1_is_a_plain_loops_over_resampled_items():
    random = np.random.default_rng(6)
    true = random.integers(0, 2, 120)
    ours, theirs = (np.where(random.random(120) < right, true, 1 - true) for right in (0.8, 0.65))
    draws = random.integers(0, 120, (4000, 120))
    found = [100 * (f1(ours[at], true[at]) - f1(theirs[at], true[at])) for at in draws]
    expected = np.percentile(found, [2.5, 97.5])
    got = ends_of([one(f1_of(ours, true), f1_of(theirs, true))])
    assert got == pytest.approx(tuple(expected), abs=0.06 * (expected[1] - expected[0]))


def test_the_average_weighs_benchmarks_alike_and_resamples_each_on_its_own():
    random = np.random.default_rng(7)
    pairs = [one(mean_of(*random.random(n)), mean_of(*random.random(n))) for n in (60, 240)]
    gains = [100 * (p.ours[0].gained - p.theirs[0].gained) for p in pairs]
    mean = np.mean([g.mean() for g in gains])
    half = 1.96 * np.sqrt(sum(g.var() / len(g) for g in gains)) / 2
    assert ends_of(pairs) == pytest.approx((mean - half, mean + half), abs=0.15 * half)
    normal = 2 * stats.norm.sf(abs(mean) / (half / 1.96))
    assert p_value(pairs) == pytest.approx(normal, abs=0.05)


def test_categories_weigh_alike_whatever_their_size():
    """MME: 40 units of one category, 4 of another."""
    gained = np.r_[np.zeros(40), np.ones(4)]
    strata = np.repeat([0, 1], [40, 4])
    pair = one(Units(gained, np.ones(44), strata, False), Units(np.zeros(44), np.ones(44), strata, False))
    assert difference_of(pair) == pytest.approx(50)
    assert ends_of([pair]) == pytest.approx((50, 50))  # within a category nothing varies


def test_over_several_seeds_the_mean_is_tested():
    a, b = mean_of(1, 0, 1, 0, 1, 1), mean_of(0, 0, 1, 0, 1, 1)
    c, d = mean_of(1, 1, 1, 0, 1, 0), mean_of(0, 0, 1, 0, 0, 0)
    both = PairedUnits((a, c), (b, d))
    gains = [1.0, 0.5, 0.0, 0.0, 0.5, 0.0]
    assert difference_of(both) == pytest.approx(100 * np.mean(gains))
    sums = [abs(sum(s * g for s, g in zip(x, gains, strict=True))) for x in product((1, -1), repeat=6)]
    assert p_value([both]) == pytest.approx(np.mean(np.array(sums) >= 2.0 - 1e-12))


def test_one_unit_has_no_interval_and_proves_nothing():
    for single in (True, False):
        alone = one(mean_of(1, single=single), mean_of(0, single=single))
        assert ends_of([alone]) is None and p_value([alone]) == 1


def test_the_same_answers_give_the_same_figures():
    random = np.random.default_rng(8)
    pair = one(mean_of(*random.random(50)), mean_of(*random.random(50)))
    assert ends_of([pair]) == ends_of([pair]) and p_value([pair]) == p_value([pair])


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


RUNS = 600


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 600)


def simulated(random, size, ours, theirs):
    """Two rows that share how hard an item is: right where their ability exceeds it."""
    hard = random.normal(size=size)
    return [(ability + random.normal(size=size) > hard).astype(float) for ability in (ours, theirs)]


def test_the_interval_holds_the_truth_95_times_of_100(quick):
    """Of means: the truth is the difference of two probabilities; two standard errors of 600 runs are 1.8 %."""
    random = np.random.default_rng(10)
    truth = 100 * (stats.norm.cdf(0.6 / 2**0.5) - stats.norm.cdf(0.2 / 2**0.5))
    held = [
        low <= truth <= high
        for low, high in (ends_of([one(*(mean_of(*x) for x in simulated(random, 150, 0.6, 0.2)))]) for _ in range(RUNS))
    ]
    assert 0.93 <= np.mean(held) <= 0.97


def test_so_does_that_of_f1(quick):
    """Said yes with probability 0.8 / 0.7 where it is so and 0.3 / 0.2 where not; half of the items are."""
    random = np.random.default_rng(11)
    truth = 100 * (2 * 0.4 / (0.55 + 0.5) - 2 * 0.35 / (0.45 + 0.5))
    held = []
    for _ in range(RUNS):
        true = random.random(200) < 0.5
        ours, theirs = (random.random(200) < np.where(true, hit, false) for hit, false in ((0.8, 0.3), (0.7, 0.2)))
        low, high = ends_of([one(f1_of(ours, true), f1_of(theirs, true))])
        held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("kind", ["mcnemar", "f1"])
def test_rows_that_are_alike_are_distinguished_no_more_than_5_times_of_100(quick, kind):
    random = np.random.default_rng(12)
    found = []
    for _ in range(RUNS):
        ours, theirs = simulated(random, 100, 0.3, 0.3)
        if kind == "mcnemar":
            found.append(p_value([one(mean_of(*ours), mean_of(*theirs))]))
        else:
            true = random.random(100) < 0.5
            said = [np.where(x == 1, true, ~true) for x in (ours, theirs)]
            found.append(p_value([one(f1_of(said[0], true), f1_of(said[1], true))]))
    assert np.mean(np.array(found) < 0.05) <= 0.07
    assert np.mean(np.array(found) < 0.5) >= 0.3  # and it is no test that never speaks
