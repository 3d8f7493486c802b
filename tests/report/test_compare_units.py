"""A benchmark's score and its standard error from stored answers, against lmms-eval's own and by hand."""

import numpy as np
import pytest

pytest.importorskip("lmms_eval")
from lmms_eval.api.metrics import clustered_stderr
from lmms_eval.tasks.mme.utils import mme_aggregate_results
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score

from switchkd_cli.report.stats.baselines import standard_error
from switchkd_cli.report.stats.significance import PairedUnits, interval
from switchkd_cli.report.stats.stored_answers import units
from tests.support.paired import ends_of


def line(place, score, **more):
    return {"doc_id": place, "key": f"k{place}", "kind": "", "prompt": "?", "score": score, **more}


def test_most_metrics_are_the_mean_of_their_items_graded_ones_too():
    made = units("vqav2_val", [line(i, score) for i, score in enumerate((1.0, 0.3, 0.6, 0.0))])
    assert made.score == pytest.approx(100 * 1.9 / 4)
    assert made.single


def test_mme_is_lmms_evals_over_categories_of_unequal_size():
    random = np.random.default_rng(1)
    sizes = {"color": 7, "count": 3, "OCR": 1}
    asked = [(c, f"{c}{i}") for c, n in sizes.items() for i in range(n)] * 2  # a pair need not stand together
    scores = random.integers(0, 2, len(asked)).astype(float)
    stock = mme_aggregate_results(
        [{"question_id": q, "category": c, "score": s} for (c, q), s in zip(asked, scores, strict=True)]
    )
    lines = [line(i, s, unit=q, category=c) for i, ((c, q), s) in enumerate(zip(asked, scores, strict=True))]
    made = units("mme", lines)
    assert made.score == pytest.approx(100 * stock / (200 * len(sizes)))
    assert sorted(np.bincount(made.stratum)) == [1, 3, 7] and not made.single


def test_an_mme_question_without_its_partner_is_no_unit():
    with pytest.raises(ValueError, match="pairs"):
        units("mme", [line(i, 1.0, unit=i // 2, category="a") for i in range(3)])


def test_mmbench_counts_a_question_that_is_right_in_every_order():
    asked = [(1, 1.0), (2, 1.0), (1, 1.0), (2, 0.0), (3, 1.0)]
    made = units("mmbench_en_dev", [line(i, s, unit=u) for i, (u, s) in enumerate(asked)])
    assert made.score == pytest.approx(200 / 3)


@pytest.mark.parametrize("yes", [0.0, 0.2, 0.7])
def test_pope_is_lmms_evals_f1(yes):
    random = np.random.default_rng(2)
    said = np.where(random.random(50) < yes, "Yes ", np.where(random.random(50) < 0.8, "no", "a cat"))
    true = np.where(random.random(50) < 0.5, "yes", "no")
    stock = pope_aggregate_f1_score(
        [{"prediction": a.lower().strip(), "ground_truth": t} for a, t in zip(said, true, strict=True)]
    )
    lines = [line(i, 0.0, answer=str(a), target=str(t)) for i, (a, t) in enumerate(zip(said, true, strict=True))]
    assert units("pope", lines).score == pytest.approx(100 * stock)


def on_images(random, share: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers to some questions on each of 400 images, and the image of each; hard images are hard."""
    sizes = np.random.default_rng(0).integers(1, most, 400)
    right = random.random(sizes.sum()) < np.repeat(random.beta(9 * share, 9 - 9 * share, 400), sizes)
    return right.astype(float), np.repeat(np.arange(400), sizes)


@pytest.mark.parametrize("most", [2, 9, 60])
def test_the_standard_error_of_a_mean_is_lmms_evals_clustered_one(most):
    values, images = on_images(np.random.default_rng(3), 0.4, most)
    assert standard_error(values, images) == pytest.approx(clustered_stderr(list(values), list(images)), rel=1e-12)


def test_so_is_the_bootstraps():
    random = np.random.default_rng(4)
    (ours, images), (theirs, _) = on_images(random, 0.6, 60), on_images(random, 0.5, 60)
    of_rows = [
        units("gqa", [line(i, s, image=f"image{n}") for i, (s, n) in enumerate(zip(of, images, strict=True))])
        for of in (ours, theirs)
    ]
    pair = [PairedUnits((of_rows[0],), (of_rows[1],))]
    expected = 100 * clustered_stderr(list(ours - theirs), list(images))
    assert interval(pair).detectable / 2.8016 == pytest.approx(expected, rel=0.03)  # normal quantiles of 0.975 and 0.8
    low, high = ends_of(pair)
    assert (high - low) / 2 == pytest.approx(1.96 * expected, rel=0.05)
    assert 100 * np.std(ours - theirs) / len(ours) ** 0.5 < 0.8 * expected  # what independent questions would have
