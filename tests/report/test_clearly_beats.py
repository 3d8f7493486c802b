"""When a score counts as more than an answer given without looking."""

import json

import pytest

from switchkd_cli.report.stats.baselines import clearly_beats, minus, read_items


def scored(values: list[float], each: int = 0) -> dict[tuple[int, str, str | None], float]:
    """So many items on each image; 0: on none."""
    return {(i, f"k{i}", f"image{i // each}" if each else None): value for i, value in enumerate(values)}


def test_a_large_paired_gain_is_clear_and_the_interval_is_the_normal_one() -> None:
    items, baseline = scored([1.0] * 60 + [0.0] * 40), scored([1.0] * 30 + [0.0] * 70)
    found = minus(items, baseline)
    # 30 of 100 differences are 1: sd = sqrt(0.21 * 100 / 99), half = 1.96 * sd / 10
    assert found.value == pytest.approx(30.0)
    assert found.ends.low == pytest.approx(30 - 9.027, abs=0.01)
    assert found.ends.high == pytest.approx(30 + 9.027, abs=0.01)
    assert clearly_beats(items, baseline)


def test_a_gain_within_the_noise_is_not_clear() -> None:
    items, baseline = scored([1.0, 0.0] * 50), scored([0.0, 1.0] * 49 + [0.0, 0.0])
    assert minus(items, baseline).value > 0
    assert not clearly_beats(items, baseline)


def test_every_baseline_must_be_beaten() -> None:
    items = scored([1.0] * 50 + [0.0] * 50)
    low, same = scored([0.0] * 100), dict(items)
    assert clearly_beats(items, low)
    assert not clearly_beats(items, low, same)


def test_pairing_helps_runs_that_err_on_the_same_items() -> None:
    hard = [1.0] * 50 + [0.0] * 50
    better = scored([1.0] * 56 + [0.0] * 44)
    assert clearly_beats(better, scored(hard))
    assert not clearly_beats(better, scored(hard[::-1]))


def test_runs_over_other_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same items"):
        minus(scored([1.0, 0.0]), {(0, "k0", None): 1.0, (1, "other", None): 0.0})


def test_a_lead_on_few_images_is_not_clear_whatever_the_number_of_questions() -> None:
    """Eight of twelve images go one way with all their ten questions, four the other."""
    items, baseline = scored([1.0] * 80 + [0.0] * 40, each=10), scored([0.0] * 80 + [1.0] * 40, each=10)
    assert not clearly_beats(items, baseline)
    assert clearly_beats(scored([1.0] * 80 + [0.0] * 40), scored([0.0] * 80 + [1.0] * 40))
    assert not clearly_beats(scored([1.0] * 9, each=9), scored([0.0] * 9, each=9))


def test_questions_that_count_together_are_one_item(tmp_path) -> None:
    file = tmp_path / "mmvp.jsonl"
    scores = [(0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0)]
    lines = [
        {"doc_id": i, "key": f"k{i}", "image": f"i{i}", "unit": unit, "score": score}
        for i, (unit, score) in enumerate(scores)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_items(file) == {(0, "k0", "i0"): 0.0, (2, "k2", "i2"): 1.0}
    file.write_text("".join(json.dumps(line | {"category": "color"}) + "\n" for line in lines))  # MME's
    assert list(read_items(file).values()) == [1.0, 0.0, 1.0, 1.0]


def test_an_answers_file_is_read_by_place_and_key(tmp_path) -> None:
    file = tmp_path / "gqa.jsonl"
    lines = [{"doc_id": i, "key": "same", "score": float(i)} for i in range(2)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_items(file) == {(0, "same", None): 0.0, (1, "same", None): 1.0}
