"""The benchmarks that aren't the paper's: pairs count as one, captions are compared with references, chance is stated."""

import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from sacrebleu.metrics import BLEU

from switchkd_cli.benchmarks import BENCHMARKS, TEN
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel, MajorityBaseline
from switchkd_cli.engine.evaluation.score_model import local_sets, score_request
from switchkd_cli.playground.tasks.caption_bleu import caption_bleu
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.report.stats.baselines import read_items
from switchkd_cli.report.stats.stored_answers import read_answers, units

PAIRS = ("mmvp", "swap")
FURTHER = (*PAIRS, "captions")
ITEMS = 40


def exam(*benchmarks: str, **changes) -> Evaluation:
    return Evaluation(**{"world": "playground", "benchmarks": benchmarks, "split": "test", "items": ITEMS, **changes})


pytestmark = pytest.mark.usefixtures("nothing_goes_out")


class Answers(LmmsModel):
    """Says what a function makes of an item."""

    def __init__(self, say, **options) -> None:
        super().__init__(**options)
        self.say = say

    def answer(self, items: list[Item]) -> list[str]:
        return [self.say(item) for item in items]


def scores(model: LmmsModel, folder: Path, sets: Path, *tasks: str) -> dict[str, float]:
    results = score_request(model, exam(*tasks), folder, sets)
    for task, entry in results["scores"].items():  # what `compare` resamples is the metric
        assert units(task, read_answers(folder / "answers", task)).score == pytest.approx(entry["score"])
    return {task: entry["score"] for task, entry in results["scores"].items()}


def test_three_follow_the_papers_ten() -> None:
    assert tuple(BENCHMARKS) == (*TEN, *FURTHER) and len(TEN) == 10


def test_right_answers_score_100(tmp_path: Path, sets: Path) -> None:
    assert scores(Answers(lambda item: item.target), tmp_path, sets, *FURTHER) == dict.fromkeys(FURTHER, 100.0)


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_constant_is_never_right_on_both_images(letter: str, tmp_path: Path, sets: Path) -> None:
    assert scores(Answers(lambda item: letter), tmp_path, sets, *PAIRS) == dict.fromkeys(PAIRS, 0.0)
    each = [line["score"] for task in PAIRS for line in read_answers(tmp_path / "answers", task)]
    assert sum(each) == len(each) / 2


def test_a_pair_counts_where_both_answers_are_right(tmp_path: Path, sets: Path) -> None:
    def first_three_pairs_and_every_first_image(item: Item) -> str:
        return item.target if item.doc_id < 6 or item.doc_id % 2 == 0 else "C"

    model = Answers(first_three_pairs_and_every_first_image)
    assert scores(model, tmp_path, sets, *PAIRS) == dict.fromkeys(PAIRS, 100 * 3 / 20)
    for task in PAIRS:
        lines = read_answers(tmp_path / "answers", task)
        assert [line["faults"] for line in lines[6:]] == [[], ["unreadable"]] * 17
        made = units(task, lines)
        assert made.single and made.gained.tolist() == [1.0] * 3 + [0.0] * 17
        assert len(read_items(tmp_path / "answers" / f"{task}.jsonl")) == 20
        assert sum(read_items(tmp_path / "answers" / f"{task}.jsonl").values()) == 3


def test_the_majority_baseline_of_pairs_is_a_coin(tmp_path: Path, sets: Path) -> None:
    assert scores(MajorityBaseline(), tmp_path, sets, *PAIRS) == dict.fromkeys(PAIRS, 25.0)
    for task in PAIRS:
        lines = read_answers(tmp_path / "answers", task)
        assert sum(line["score"] for line in lines) == len(lines) / 2
        assert not any(line["faults"] for line in lines)
    lines = read_answers(tmp_path / "answers", "mmvp")
    right = Counter(
        one["kind"] for one, two in zip(lines[::2], lines[1::2], strict=True) if one["score"] + two["score"] == 2
    )
    assert set(right.values()) == {1, 2} and len(right) == 4  # of five pairs for each cause


def test_the_majority_caption_is_a_right_one_and_better_than_most(tmp_path: Path, sets: Path) -> None:
    found = scores(MajorityBaseline(), tmp_path, sets, "captions")["captions"]
    lines = read_answers(tmp_path / "answers", "captions")
    (said,) = {line["answer"] for line in lines}
    targets = [line["target"] for line in lines]
    assert said in targets
    other = [
        scores(Answers(lambda _, of=of: of), tmp_path / of[:40], sets, "captions")["captions"] for of in targets[:6]
    ]
    assert found > sum(other) / len(other)
    assert 30 < found < 60


def test_a_caption_is_scored_by_sacrebleu_against_both_references(tmp_path: Path, sets: Path) -> None:
    def cut(item: Item) -> str:
        return item.target.rsplit(",", 1)[0] + "."

    found = scores(Answers(cut), tmp_path, sets, "captions")["captions"]
    lines = read_answers(tmp_path / "answers", "captions")
    bleu = BLEU(effective_order=True)
    own = []
    for line in lines:
        *_, last = line["target"].rstrip(".").split(", ")
        parts = line["target"].rstrip(".").split(", ")
        swapped = ", ".join([*parts[1:], parts[0]]) + "."
        assert last not in line["answer"]
        own.append(bleu.sentence_score(line["answer"], [line["target"], swapped]).score)
    assert found == pytest.approx(sum(own) / len(own)) and 30 < found < 90


def test_either_reference_is_wholly_right_and_other_contents_are_not() -> None:
    references = ["a blue background, a dog at the top left.", "a dog at the top left, a blue background."]
    assert [caption_bleu(text, references) for text in references] == [1.0, 1.0]
    wrong = caption_bleu("a blue background, a cat at the top left.", references)
    assert 0.0 == caption_bleu("", references) < wrong < 1.0


def test_captions_may_be_longer_than_other_answers(tmp_path: Path, sets: Path) -> None:
    model = Answers(lambda item: item.target, playground=True)
    score_request(model, exam("captions", "mmvp", "gqa"), tmp_path, sets)
    assert {item.task: item.limit for item in model.items.values()} == {"captions": 64, "mmvp": 16, "gqa": 16}
    longest = max(len(item.target.replace(",", " ,").split()) + 1 for item in model.items.values())
    assert longest < 64


def test_questions_of_a_pair_are_drawn_together_with_the_other_questions_on_the_first_image(tmp_path, sets) -> None:
    model = Answers(lambda item: item.target)
    score_request(model, exam(*FURTHER), tmp_path, sets)
    lines = {task: read_answers(tmp_path / "answers", task) for task in FURTHER}
    firsts = [line["image"] for line in lines["mmvp"][::2]]
    assert list(units("mmvp", lines["mmvp"]).images) == firsts
    assert set(firsts) & {line["image"] for line in lines["captions"]}


def test_published_mmvp_is_read_by_its_name(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub can't be reached from here: a working directory with a set of that name takes its place."""
    import datasets
    from lmms_eval.api import task

    home = local_sets(exam("mmvp"), sets)
    assert [path.name for path in (home / "lmms-lab-eval").iterdir()] == ["MMVP"]
    monkeypatch.chdir(home)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(task, "_resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    asked = exam("mmvp", world="hub", items=5)
    results = score_request(Answers(lambda item: item.target), asked, tmp_path / "run")
    assert (results["scores"]["mmvp"]["score"], results["scores"]["mmvp"]["items"]) == (100.0, 4)


def test_a_set_whose_files_changed_is_written_again(tmp_path: Path) -> None:
    home = local_sets(exam("swap", "gqa"), tmp_path)
    (file,) = home.glob("switchkd/swap/*/*.parquet")
    written = file.read_bytes()
    file.write_bytes(b"broken")
    assert local_sets(exam("swap", "gqa"), tmp_path) == home and file.read_bytes() == written
    assert "switchkd" in json.dumps([str(path) for path in home.iterdir()])
