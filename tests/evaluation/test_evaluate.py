"""Evaluation by the stock lmms-eval tasks: what any answerer meets, right, wrong, unreadable or broken."""

import importlib.util
import io
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from PIL import Image
from pydantic import ValidationError

from switchkd_cli.benchmarks import BENCHMARKS, FAULTS, TEN
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel
from switchkd_cli.engine.evaluation.score_model import (
    evaluate,
    evaluation_sets,
    local_sets,
    majority,
    question_images,
    score_request,
)
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.playground.benchmark_sets import benchmark_items
from switchkd_cli.playground.text.questions import prompt
from switchkd_cli.playground.text.words import STYLES
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.report.stats.stored_answers import read_answers, units

ITEMS = 8
pytestmark = pytest.mark.usefixtures("nothing_goes_out")


def exam(*benchmarks: str, items: int = ITEMS) -> Evaluation:
    return Evaluation(world="playground", benchmarks=benchmarks or tuple(STYLES), split="test", items=items, seed=0)


class Oracle(LmmsModel):
    """Knows the answers."""

    def answer(self, items: list[Item]) -> list[str]:
        return [item.target for item in items]


class Always(LmmsModel):
    """Says one thing, whatever is asked."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said = said

    def answer(self, items: list[Item]) -> list[str]:
        return [self.said] * len(items)


class Fickle(LmmsModel):
    """Right, wrong, right and unreadable in turn."""

    def answer(self, items: list[Item]) -> list[str]:
        said = ({}, {"yes": "no", "no": "yes", "A": "B"}, {}, None)
        return [
            "well" if (of := said[i % 4]) is None else of.get(item.target, item.target) for i, item in enumerate(items)
        ]


def answers(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers" / f"{task}.jsonl").read_text().splitlines()]


def test_right_answers_score_100_on_all_ten(tmp_path: Path, sets: Path) -> None:
    results = score_request(Oracle(), exam(), tmp_path, sets)
    assert {task: score["score"] for task, score in results["scores"].items()} == dict.fromkeys(STYLES, 100.0)
    for task in STYLES:
        assert [line["score"] for line in answers(tmp_path, task)] == [1.0] * ITEMS


def test_the_stock_tasks_ask_what_the_world_says_they_ask(tmp_path: Path, sets: Path) -> None:
    score_request(Oracle(), exam(), tmp_path, sets)
    for task in STYLES:
        told = {row.number: prompt(row.question) for row in benchmark_items(task, split="test", items=ITEMS, seed=0)}
        assert {line["doc_id"]: line["prompt"] for line in answers(tmp_path, task)} == told


def test_wrong_answers_score_0(tmp_path: Path, sets: Path) -> None:
    results = score_request(Always("E"), exam(), tmp_path, sets)
    scores = {task: score["score"] for task, score in results["scores"].items()}
    chance = scores.pop("mmmu_val")  # the official rule takes a random option where it reads none
    assert set(scores.values()) == {0.0}
    assert chance < 100.0


@pytest.mark.parametrize("said", ["", "I can't tell.", "A B", "option five"])
def test_an_unreadable_mmbench_answer_is_wrong_and_nobody_is_asked(said: str, tmp_path: Path, sets: Path) -> None:
    results = score_request(Always(said), exam("mmbench_en_dev", "mmbench_cn_dev"), tmp_path, sets)
    assert [score["value"] for score in results["scores"].values()] == [0.0, 0.0]
    assert {line["score"] for line in answers(tmp_path, "mmbench_cn_dev")} == {0.0}


def test_a_constant_letter_scores_its_share_item_by_item(tmp_path: Path, sets: Path) -> None:
    tasks = ("mmbench_en_dev", "mmmu_val", "scienceqa_img")
    results = score_request(Always("B"), exam(*tasks, items=40), tmp_path, sets)
    for task in tasks:
        lines = answers(tmp_path, task)
        assert [line["score"] for line in lines] == [float(line["target"] == "B") for line in lines]
        assert results["scores"][task]["score"] == pytest.approx(2.5 * sum(line["score"] for line in lines))


def test_mme_is_scored_in_pairs_over_the_categories_that_are_present(tmp_path: Path, sets: Path) -> None:
    results = score_request(Always("Yes"), exam("mme", items=40), tmp_path, sets)
    # One right of each pair: accuracy 50, both right never, so 50 of 200 points in every category.
    assert results["scores"]["mme"]["score"] == pytest.approx(25.0)


def test_the_stored_answers_give_the_scores_again(tmp_path: Path, sets: Path) -> None:
    """All that `compare` resamples is in the answers files; a run half right, half wrong would show what is lost."""
    results = score_request(Fickle(), exam(items=40), tmp_path, sets)
    for task, entry in results["scores"].items():
        made = units(task, read_answers(tmp_path / "answers", task))
        assert made.score == pytest.approx(entry["score"], abs=1e-3)
    assert any(0 < entry["score"] < 100 for entry in results["scores"].values())
    assert {"unit", "category"} <= read_answers(tmp_path / "answers", "mme")[0].keys()
    assert "unit" in read_answers(tmp_path / "answers", "mmbench_cn_dev")[0]


def test_the_images_of_stored_answers_are_found_again_by_their_digest(tmp_path: Path, sets: Path) -> None:
    score_request(Oracle(), exam("gqa", "pope"), tmp_path, sets)
    lines = {task: answers(tmp_path, task)[2:5] for task in ("gqa", "pope")}
    found = question_images(exam("gqa", "pope"), sets, {(task, of["doc_id"]) for task in lines for of in lines[task]})
    assert found.keys() == {line["image"] for of in lines.values() for line in of}
    drawn = {row.number: row.png for row in benchmark_items("gqa", split="test", items=ITEMS, seed=0)}
    (image,) = found[lines["gqa"][0]["image"]]
    assert image.convert("RGB").tobytes() == Image.open(io.BytesIO(drawn[2])).convert("RGB").tobytes()


CHOICES = {task for task in TEN if BENCHMARKS[task].asks == "choice"}
OPEN = {task for task in TEN if BENCHMARKS[task].asks == "open"}


@pytest.mark.parametrize(
    ("said", "fault", "tasks"),
    [
        ("Yes.", "unreadable", {"pope"} | CHOICES),  # MME's rule takes the dot away
        ("I can't tell.", "unreadable", {"pope", "mme"} | CHOICES),
        ("(B)", "unreadable", {"pope", "mme", "scienceqa_img"}),
        ("B. that one", "unreadable", {"pope", "mme"}),
        (" ", "empty", set(STYLES)),
    ],
)
def test_answers_that_a_metric_cannot_read_are_counted_as_it_reads_them(
    said: str, fault: str, tasks: set[str], tmp_path: Path, sets: Path
) -> None:
    scores = score_request(Always(said), exam(), tmp_path, sets)["scores"]
    assert {task for task, score in scores.items() if score[fault] == ITEMS} == tasks
    assert all(score[fault] == 0 for task, score in scores.items() if task not in tasks | OPEN)
    for task, score in scores.items():
        others = {*FAULTS} - {fault}
        assert all(score[other] == 0 for other in others)
        assert score["example"] == (said if task in tasks and fault == "unreadable" else None)
        assert [line["faults"] for line in answers(tmp_path, task)] == [[fault] * (task in tasks)] * ITEMS


@pytest.mark.parametrize(
    ("said", "mme", "pope"), [("no", (0, ITEMS), (0, ITEMS)), ("Yes.", (ITEMS, 0), (0, 0)), ("well", (0, 0), (0, 0))]
)
def test_words_and_accuracy_of_yes_or_no_questions_are_stored_as_the_stock_rules_read_them(
    said: str, mme: tuple[int, int], pope: tuple[int, int], tmp_path: Path, sets: Path
) -> None:
    scores = score_request(Always(said), exam("mme", "pope", "gqa"), tmp_path, sets)["scores"]
    assert [(scores[task]["yes"], scores[task]["no"]) for task in ("mme", "pope")] == [mme, pope]
    right = [line["answer"] == line["target"].lower() for line in answers(tmp_path, "pope")]
    assert scores["pope"]["accuracy"] == pytest.approx(100 * sum(right) / ITEMS)
    assert not {"yes", "accuracy"} & scores["gqa"].keys() and "accuracy" not in scores["mme"]


def test_right_answers_in_a_sentence_are_no_answers_to_open_questions_and_it_is_counted(
    tmp_path: Path, sets: Path
) -> None:
    class Talkative(LmmsModel):
        def answer(self, items: list[Item]) -> list[str]:
            return [f"I think it is {item.target} over there" for item in items]

    scores = score_request(Talkative(), exam(*OPEN), tmp_path, sets)["scores"]
    assert {task: (score["score"], score["unreadable"]) for task, score in scores.items()} == dict.fromkeys(
        OPEN, (0.0, ITEMS)
    )
    right = score_request(Oracle(), exam(), tmp_path / "right", sets)["scores"]
    wrong = score_request(Always("E"), exam(*OPEN), tmp_path / "wrong", sets)["scores"]
    assert not any(score["unreadable"] for score in (*right.values(), *wrong.values()))


def test_an_answer_that_ends_with_a_stop_word_was_not_cut_at_the_limit() -> None:
    item = Item("gqa", 0, "", (), list, limit=4, until=("USER:",), at_limit=True)
    assert item.cut("a cup USER: and") == "a cup" and not item.at_limit
    item.at_limit = True
    assert item.cut("a cup and ") == "a cup and" and item.at_limit


def test_answers_name_the_image_that_they_are_about(tmp_path: Path, sets: Path) -> None:
    """By its pixels: MME's pairs share one, and sets that draw from one sequence of scenes name them alike."""
    score_request(Oracle(), exam("mme", "gqa", "vqav2_val", items=40), tmp_path, sets)
    mme, gqa, vqa = ([line["image"] for line in answers(tmp_path, t)] for t in ("mme", "gqa", "vqav2_val"))
    assert mme[::2] == mme[1::2] and len(set(mme)) == 20
    assert len(set(gqa)) == 40 and set(gqa) & set(vqa)
    assert all(len(name) == 16 for name in mme + gqa)
    assert len(units("mme", read_answers(tmp_path / "answers", "mme")).gained) == 20


def test_a_question_without_an_image_names_none_and_several_images_are_one_name() -> None:
    one, two = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    names = []
    for pictures in ([], [one], [one.copy()], [two], [one, two]):
        item = Item(
            "gqa", 0, "", [{"answer": "", "pictures": pictures}], lambda doc: doc["pictures"], limit=1, until=()
        )
        item.read()
        names.append(item.image_key)
    none, *named, both = names
    assert none is None and named[0] == named[1] != named[2] and both not in named


def test_the_majority_is_counted_by_kind_and_for_pope_it_says_yes(tmp_path: Path, sets: Path) -> None:
    tasks = ("gqa", "mmbench_en_dev", "pope", "textvqa_val")
    results = majority(world="playground", benchmarks=tasks, split="test", items=40, seed=0, folder=tmp_path, sets=sets)
    scores = {task: score["score"] for task, score in results["scores"].items()}
    gqa, letters, pope = (answers(tmp_path, task) for task in tasks[:3])
    by_kind = Counter((line["kind"], line["target"]) for line in gqa)
    best = {kind: max(n for (k, _), n in by_kind.items() if k == kind) for kind, _ in by_kind}
    assert scores["gqa"] == pytest.approx(2.5 * sum(best.values()))
    best_letter = max(Counter(line["target"] for line in letters).values())
    assert scores["mmbench_en_dev"] == pytest.approx(2.5 * best_letter)
    share = sum(line["target"] == "yes" for line in pope) / 40
    assert {line["answer"] for line in pope} == {"yes"}
    assert scores["pope"] == pytest.approx(100 * 2 * share / (1 + share))


def test_an_answerer_that_fails_fails_the_evaluation(tmp_path: Path, sets: Path) -> None:
    class Broken(LmmsModel):
        def answer(self, items: list[Item]) -> list[str]:
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        score_request(Broken(), exam("gqa"), tmp_path, sets)
    assert not (tmp_path / "answers").exists()


def test_a_rule_that_fails_is_raised_at_once(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    def broken(self: object, text: str) -> str:
        raise ZeroDivisionError("the rule broke")

    monkeypatch.setattr(EvalAIAnswerProcessor, "__call__", broken)
    with pytest.raises(ZeroDivisionError, match="the rule broke"):
        score_request(Oracle(), exam("vizwiz_vqa_val"), tmp_path, sets)


def test_the_caller_is_left_as_it_was(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = os.getcwd(), dict(os.environ), random.getstate()
    score_request(Oracle(), exam("gqa", "mmbench_en_dev"), tmp_path, sets)
    assert (os.getcwd(), dict(os.environ), random.getstate()) == before
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "log.txt").stat().st_size
    assert not list(sets.rglob("submissions"))


def test_the_datasets_library_caches_beside_the_sets(tmp_path: Path, sets: Path) -> None:
    import datasets

    score_request(Oracle(), exam("gqa"), tmp_path, sets)
    assert list(sets.glob("*/cache/*"))
    assert Path(datasets.config.HF_DATASETS_CACHE) not in sets.rglob("cache")


def test_equal_exams_have_equal_keys_whoever_answers(tmp_path: Path, sets: Path) -> None:
    first = score_request(Oracle(), exam("gqa"), tmp_path / "a", sets)
    second = score_request(Always("no"), exam("gqa"), tmp_path / "b", tmp_path / "elsewhere")
    other = score_request(
        Oracle(),
        Evaluation(world="playground", benchmarks=("gqa",), split="validation", items=ITEMS, seed=0),
        tmp_path / "c",
        sets,
    )
    assert first["sets_key"] == second["sets_key"] != other["sets_key"]
    keys = [[line["key"] for line in answers(tmp_path / name, "gqa")] for name in "abc"]
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_published_sets_are_read_by_their_names(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub can't be reached from here: a working directory with sets of those names takes its place."""
    import datasets
    from lmms_eval.api import task

    monkeypatch.chdir(local_sets(exam("pope", "mme"), sets))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(task, "_resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    results = score_request(
        Oracle(), Evaluation(world="hub", benchmarks=("pope", "mme"), split="test", items=5, seed=0), tmp_path / "run"
    )
    assert [(score["score"], score["items"]) for score in results["scores"].values()] == [(100.0, 4)] * 2
    assert results["split"] == "published"


def test_what_cannot_be_asked_is_said_before_anything_runs(tmp_path: Path, sets: Path) -> None:
    asked = {"world": "playground", "benchmarks": ["pope"], "split": "test", "items": 2, "seed": 0}
    for wrong in ({"world": "playgruond"}, {"split": "tset"}, {"items": 0}, {"benchmarks": []}):
        with pytest.raises(ValidationError):
            majority(folder=tmp_path, **asked | wrong)
    for items in (None, 1):
        with pytest.raises(UserError, match="items"):
            majority(folder=tmp_path, **asked | {"items": items})
    assert not list(tmp_path.iterdir())


def test_without_lmms_eval_the_machine_lacks_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lmms_eval" else find(name))
    asked_for = {"world": "playground", "benchmarks": ["gqa"], "split": "test", "items": 2, "seed": 0}
    with pytest.raises(UserError) as caught:
        evaluate("model", batch=2, folder=tmp_path, **asked_for)
    assert caught.value.code == MACHINE
    assert caught.value.hint == "pip install --no-deps lmms-eval==0.7.3"


def test_every_row_of_the_protocol_names_a_task() -> None:
    from switchkd_cli.engine.evaluation.lmms_harness import task_manager

    rows = list(BENCHMARKS.values())
    assert {row.task for row in rows} <= set(task_manager(rows).all_subtasks)


def test_the_questions_of_playground_sets_are_known_without_a_model(tmp_path):
    """GQA's images lie in a data set of their own."""
    asked = Evaluation(world="playground", benchmarks=("gqa", "pope"), split="test", items=4)
    found, absent = evaluation_sets(asked, tmp_path)
    assert (list(found), absent) == (["gqa", "pope"], [])
    for questions in found.values():
        assert all(questions.images(text) for text in questions.by_text) and not questions.unread
