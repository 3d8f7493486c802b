"""Questions about one image are no independent ones: units, standard errors, coverage, and what could have been found."""

from itertools import product

import numpy as np
import pytest

from switchkd_cli.errors import UserError
from switchkd_cli.report.document import Interval, Number
from switchkd_cli.report.results.row_runs import over_seeds
from switchkd_cli.report.stats import significance
from switchkd_cli.report.stats.baselines import clearly_beats
from switchkd_cli.report.stats.significance import PairedUnits, interval, p_value
from switchkd_cli.report.stats.stored_answers import Units, units
from tests.commands.test_compare import compared, finished, root, stored, table, write  # noqa: F401

MDE = 2.801585  # standard errors: normal quantiles of 0.975 and 0.8
from tests.support.paired import ends_of, gains_of


def questions(scores) -> Units:
    scores = np.asarray(scores, dtype=float)
    return Units(scores, np.ones(len(scores)), np.zeros(len(scores), int), single=True)


def lines(scores, images, **more) -> list[dict]:
    given = zip(scores, images, strict=True)
    return [{"doc_id": i, "key": f"k{i}", "kind": "a", "score": s, "image": n} | more for i, (s, n) in enumerate(given)]


def test_an_image_with_all_its_questions_is_one_unit():
    made = units("gqa", lines([1.0, 0.0, 1.0, 0.5, 1.0], ["x", "y", "x", None, None]))
    assert made.gained.tolist() == [2.0, 0.0, 0.5, 1.0] and made.possible.tolist() == [2, 1, 1, 1]
    assert made.score == pytest.approx(70.0) and not made.single


def test_images_that_are_all_different_change_nothing():
    with_images, without = (units("gqa", lines([1.0, 0.0, 1.0], n)) for n in (["x", "y", "z"], [None] * 3))
    assert with_images.single and with_images.gained.tolist() == without.gained.tolist()


def test_mmes_pairs_stand_inside_their_image_and_category():
    scores, images = (1.0, 1.0, 1.0, 0.0, 1.0, 1.0), ["x", "x", "x", "x", "x", "x"]
    asked = [
        line | {"unit": i // 2, "category": c}
        for i, (line, c) in enumerate(zip(lines(scores, images), "aaaabb", strict=True))
    ]
    made = units("mme", asked)
    assert made.gained.tolist() == [1.25, 1.0] and made.possible.tolist() == [2, 1]
    assert made.stratum.tolist() == [0, 1]
    assert made.score == units("mme", [line | {"image": None} for line in asked]).score == pytest.approx(81.25)


def test_mmbenchs_orders_of_one_question_stand_inside_their_image():
    asked = [
        line | {"unit": u} for line, u in zip(lines([1.0, 1.0, 0.0, 1.0], list("xxxx")), (1, 2, 2, 3), strict=True)
    ]
    made = units("mmbench_en_dev", asked)
    assert (made.gained.tolist(), made.possible.tolist()) == ([2.0], [3.0])


def test_popes_f1_is_resampled_by_image():
    asked = lines([0.0] * 4, list("xxyy"))
    for line, (said, true) in zip(asked, (("yes", "yes"), ("no", "yes"), ("yes", "no"), ("well", "yes")), strict=True):
        line |= {"answer": said, "target": true}
    made = units("pope", asked)
    assert made.gained.tolist() == [2, 0] and made.possible.tolist() == [3, 1]


def clustered(random, sizes, share=0.5, correlation=0.05):
    """0 or 1 for each question of images with `sizes` questions each; those of one image have this correlation."""
    of = (1 - correlation) / correlation
    each = random.beta(share * of, (1 - share) * of, len(sizes))
    return (random.random(sum(sizes)) < np.repeat(each, sizes)).astype(float)


RUNS = 400


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 400)


def in_gqas_shape(random):
    """Right and wrong answers of two rows to 12,578 questions on 398 images; the truth is 10 points."""
    sizes = random.multinomial(12_578 - 398, random.dirichlet([3] * 398)) + 1
    images = np.repeat(np.arange(398), sizes)
    made = [questions(clustered(random, sizes, share)) for share in (0.6, 0.5)]
    return [each.of_images(images) for each in made], images, made[0].gained - made[1].gained


def in_popes_shape(random):
    """Yes and no to 6 questions on each of 500 images, in three sets; the truth is a difference of two F1."""
    sizes = [18] * 500
    images, true = np.repeat(np.arange(500), 18), np.tile([1.0, 0.0], 4_500)
    made = []
    for hit, false in ((0.8, 0.3), (0.7, 0.2)):
        said = np.where(true == 1, clustered(random, sizes, hit), clustered(random, sizes, false))
        made.append(Units(2 * said * true, said + true, np.zeros(9_000, int), single=False).of_images(images))
    return made, images, None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "truth"),
    [(in_gqas_shape, 10.0), (in_popes_shape, 100 * (2 * 0.4 / (0.55 + 0.5) - 2 * 0.35 / (0.45 + 0.5)))],
)
def test_the_interval_by_image_holds_the_truth_95_times_of_100(quick, shape, truth):
    """Answers about one image are correlated by 0.05; two standard errors of 400 runs are 2.2 %."""
    random = np.random.default_rng(10)
    held, alone = [], []
    for _ in range(RUNS):
        (ours, theirs), _, gains = shape(random)
        low, high = ends_of([PairedUnits((ours,), (theirs,))])
        held.append(low <= truth <= high)
        if gains is not None:
            half = 196 * np.std(gains) / len(gains) ** 0.5
            alone.append(abs(100 * gains.mean() - truth) <= half)
    assert 0.93 <= np.mean(held) <= 0.97
    assert not alone or np.mean(alone) < 0.85  # independent questions: the case says something


def in_the_playgrounds_shape(random):
    """Two rows' answers to ten sets of a question each on the same 200 images; the truth is 10 points."""
    rows = [clustered(random, [10] * 200, share).reshape(200, 10).T for share in (0.6, 0.5)]
    names = [f"image{i}" for i in range(200)]
    return [PairedUnits(*((questions(of[task]).of_images(names),) for of in rows)) for task in range(10)]


@pytest.mark.slow
def test_so_does_that_of_the_average_over_sets_about_the_same_images(quick):
    random = np.random.default_rng(11)
    ends = [ends_of(in_the_playgrounds_shape(random)) for _ in range(RUNS)]
    assert 0.93 <= np.mean([low <= 10 <= high for low, high in ends]) <= 0.97


def test_sets_about_the_same_images_are_drawn_together():
    pairs = in_the_playgrounds_shape(np.random.default_rng(3))
    by_image = np.mean([gains_of(pair) for pair in pairs], axis=0)
    assert interval(pairs).detectable / MDE == pytest.approx(100 * by_image.std() / 200**0.5, rel=0.03)
    alone = [PairedUnits((questions(p.ours[0].gained),), (questions(p.theirs[0].gained),)) for p in pairs]
    assert interval(alone).detectable < 0.95 * interval(pairs).detectable


def test_an_image_is_exchanged_in_every_set_that_asks_about_it():
    gains = np.array([[1, 0, 1, 1, 0, -1], [0.5, 1, 0, 1, 1, 0]])
    pairs = [PairedUnits((questions(of).of_images(list("abcdef")),), (questions([0] * 6),)) for of in gains]
    sums = [abs(signs @ gains.mean(axis=0)) for signs in map(np.array, product((1, -1), repeat=6))]
    assert p_value(pairs) == pytest.approx(np.mean(np.array(sums) >= gains.mean(axis=0).sum() - 1e-12))


def test_categories_that_share_images_are_drawn_together_and_the_others_apart():
    gained, strata = np.r_[np.ones(40), np.zeros(44)], np.repeat([0, 1, 2], [40, 40, 4])
    made = Units(gained, np.ones(84), strata, False)
    shared = made.of_images([f"image{i % 40}" if i < 80 else f"other{i}" for i in range(84)])
    nothing = Units(np.zeros(84), np.ones(84), strata, False, shared.images)
    pair = PairedUnits((shared,), (nothing,))
    assert [len(part) for part in significance.ImagePool([pair]).parts()] == [40, 4]
    assert ends_of([pair]) == pytest.approx((100 / 3, 100 / 3))  # within a category nothing varies


@pytest.mark.slow
def test_rows_that_are_alike_are_distinguished_by_image_no_more_than_5_times_of_100(quick):
    random = np.random.default_rng(12)
    sizes, found = random.integers(5, 60, 100), []
    images = np.repeat(np.arange(100), sizes)
    for _ in range(2 * RUNS):
        ours, theirs = (questions(clustered(random, sizes)).of_images(images) for _ in range(2))
        found.append(p_value([PairedUnits((ours,), (theirs,))]))
    assert np.mean(np.array(found) < 0.05) <= 0.07
    assert np.mean(np.array(found) < 0.5) >= 0.3  # and it is no test that never speaks


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_minimum_detectable_effect_over_seeds_is_found_in_80_of_100_cases(seeds):
    values = np.random.default_rng(0).normal(size=seeds)
    found = over_seeds(list(values / values.std(ddof=1)), difference=True)  # a deviation of 1
    for effect, low, high in ((found.detectable, 0.79, 0.81), (found.detectable / 2, 0.2, 0.5)):
        draws = np.random.default_rng(1).normal(effect, 1.0, (40_000, seeds))
        clear = np.abs(draws.mean(axis=1)) > found.interval * draws.std(axis=1, ddof=1)
        assert low < clear.mean() < high


def test_that_over_items_is_found_in_80_of_100_draws_of_the_items():
    random = np.random.default_rng(5)
    gains = random.normal(size=900)
    effect = interval([PairedUnits((questions(gains),), (questions(np.zeros(900)),))]).detectable / 100
    draws = random.normal(effect, gains.std(), (4_000, 900))
    clear = np.abs(draws.mean(axis=1)) > 1.96 * draws.std(axis=1) / 30
    assert clear.mean() == pytest.approx(0.8, abs=0.03)


def test_what_could_have_been_found_stands_beside_what_is_not_clear_and_only_there():
    assert str(Number(1.1, 2.8, 5, difference=True, detectable=3.9)) == "+1.1 ± 2.8 not clear, MDE 3.9"
    assert str(Number(3.1, 2.8, 5, difference=True, detectable=3.9)) == "+3.1 ± 2.8"
    assert str(Number(1.1, None, 1, difference=True)) == "+1.1 ± ? not clear"
    assert str(Interval(-1.0, 2.0, 2.1)) == "[-1.0, +2.0] MDE 2.1"
    assert str(Interval(0.5, 2.0, 1.1)) == "[+0.5, +2.0]"
    assert str(Interval(0.0, 0.0, 0.0)) == "[+0.0, +0.0]"  # nothing varied, which says nothing


def on_images(folder, task: str, name) -> None:
    """Writes the answers again, `name(place)` naming each line's image."""
    write(folder, task, [line | {"image": name(i)} for i, line in enumerate(stored(folder, task))])


def test_four_questions_an_image_widen_the_interval_and_are_reported(root):  # noqa: F811
    ours, theirs = finished(root, "switch-kd", tasks=("gqa",)), finished(root, "sft", tasks=("gqa",))
    before = table(compared(ours, theirs), "Switch-KD minus SFT")["GQA"]
    scores = {run.path: stored(run, "gqa") for run in (ours, theirs)}
    better = [a["score"] - b["score"] for a, b in zip(*scores.values(), strict=True)]
    order = {i: place for place, i in enumerate(sorted(range(40), key=better.__getitem__))}
    for run in (ours, theirs):
        on_images(run, "gqa", lambda i: f"image{order[i] // 4}")  # an image's questions go the same way
    report = compared(ours, theirs)
    after = table(report, "Switch-KD minus SFT")["GQA"]
    assert after["difference"] == before["difference"]
    width = [cell["95 % items"].high - cell["95 % items"].low for cell in (before, after)]
    assert width[1] > 1.5 * width[0] and after["p"].value > before["p"].value
    assert "questions on images, which are drawn and exchanged whole: GQA 40 on 10" in report.notes
    assert "fewer than 30 images, so the intervals over items are too narrow: GQA 10" in report.notes


def test_runs_that_were_shown_other_images_are_refused(root):  # noqa: F811
    ours, theirs = finished(root, "switch-kd", tasks=("gqa",)), finished(root, "sft", tasks=("gqa",))
    on_images(ours, "gqa", lambda i: f"image{i}")
    on_images(theirs, "gqa", lambda i: f"image{min(i, 37)}")
    with pytest.raises(UserError) as refused:
        compared(ours, theirs)
    (problem,) = refused.value.problems
    assert "GQA: 2 of 40 images differ; item 38 has 'image37', that of" in problem


def test_what_could_have_been_found_is_in_the_unrounded_forms_too(root):  # noqa: F811
    from switchkd_cli.report import show

    report = compared(*(finished(root, row, seed) for row in ("vsd", "sft") for seed in (1, 2, 3)))
    found = table(report, "VSD only minus SFT")["GQA"]
    for cell in (found["95 % seeds"], found["95 % items"]):
        assert cell.mde == f"MDE {cell.detectable:.1f}"
        for form in (show.to_csv, show.to_json):
            assert str(cell.detectable) in form(report)
    assert any(note.startswith("MDE: minimum detectable effect") for note in report.notes)


def test_a_benchmark_counts_only_if_its_images_bear_it_out():
    items = {(i, f"k{i}", f"image{i // 20}"): float(i < 80) for i in range(120)}
    assert not clearly_beats(items, {key: 1 - score for key, score in items.items()})
