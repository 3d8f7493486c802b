"""Which benchmarks count: the teacher has to beat both baselines, item by item and in the score."""

import json

import pytest

from switchkd_cli.report.stats.baselines import read_items, with_verdict
from tests.support import made_up_runs as made


@pytest.fixture
def folder(tmp_path):
    def write(**answers):
        """Items of "gqa" by who answered them."""
        for who, values in answers.items():
            path = tmp_path / who / "answers" / "gqa.jsonl"
            path.parent.mkdir(parents=True)
            lines = [{"doc_id": i, "key": f"k{i}", "score": float(v)} for i, v in enumerate(values)]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    return write


def results(**scores):
    return {who: made.results({"gqa": score}) for who, score in scores.items()}


def test_a_clear_lead_counts(folder):
    where = folder(teacher=[1] * 80 + [0] * 20, majority=[1] * 30 + [0] * 70, blind=[1] * 40 + [0] * 60)
    scored = results(teacher=80.0, majority=30.0, blind=40.0)
    assert with_verdict(where, scored) == {**scored, "not_beaten": {}}


def test_the_baseline_that_is_not_beaten_is_named(folder):
    where = folder(teacher=[1] * 50 + [0] * 50, majority=[0] * 52 + [1] * 48, blind=[0] * 100)
    assert with_verdict(where, results(teacher=50.0, majority=48.0, blind=0.0))["not_beaten"] == {"gqa": ["majority"]}


def test_the_reported_score_must_lead_too(folder):
    where = folder(teacher=[1] * 65 + [0] * 35, majority=[1] * 40 + [0] * 60, blind=[0] * 100)
    verdict = with_verdict(where, results(teacher=60.0, majority=66.7, blind=0.0))  # an F1 that favours a constant
    assert verdict["not_beaten"] == {"gqa": ["majority"]}


def test_one_item_proves_nothing(folder):
    where = folder(teacher=[1], majority=[0], blind=[0])
    verdict = with_verdict(where, results(teacher=100.0, majority=0.0, blind=0.0))
    assert verdict["not_beaten"] == {"gqa": ["majority", "blind"]}


def test_answers_that_are_not_there_are_no_answers_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_items(tmp_path / "pope.jsonl")
