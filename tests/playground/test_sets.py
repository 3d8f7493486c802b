"""The world's data sets: what the stock tasks find in them."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from switchkd_cli.benchmarks import BENCHMARKS, TEN
from switchkd_cli.engine.evaluation.score_model import local_sets
from switchkd_cli.errors import UserError
from switchkd_cli.playground.benchmark_sets import benchmark_items, write_sets
from switchkd_cli.playground.text.words import STYLES
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import Evaluation
from tests.support.small_recipe import write

REQUEST = {"split": "test", "items": 6, "seed": 3}


def parquets(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.parquet"))}


def test_there_is_a_manner_of_asking_for_each_of_the_ten() -> None:
    assert set(STYLES) == set(TEN)


@pytest.mark.parametrize("task", BENCHMARKS)
def test_items_counts_questions(task: str) -> None:
    assert len(list(benchmark_items(task, **REQUEST))) == 6


def test_mme_asks_in_pairs_of_one_picture_and_category_with_both_answers() -> None:
    rows = list(benchmark_items("mme", split="test", items=9, seed=0))
    assert len(rows) == 8
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first.scene == second.scene
        assert first.question.kind == second.question.kind
        assert {first.question.answer, second.question.answer} == {"yes", "no"}


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(tmp_path) -> None:
    one = write_sets(tmp_path / "one", benchmarks=STYLES, **REQUEST)
    two = write_sets(tmp_path / "two", benchmarks=STYLES, **REQUEST)
    other = write_sets(tmp_path / "other", benchmarks=STYLES, split="test", items=6, seed=4)
    assert parquets(one) == parquets(two)
    assert parquets(one) != parquets(other)


def test_questions_do_not_depend_on_which_benchmarks_are_asked_for(tmp_path) -> None:
    alone = write_sets(tmp_path / "alone", benchmarks=["gqa"], **REQUEST)
    among = write_sets(tmp_path / "among", benchmarks=STYLES, **REQUEST)
    assert parquets(alone).items() <= parquets(among).items()


def test_more_items_begin_with_the_fewer() -> None:
    few = list(benchmark_items("vqav2_val", **REQUEST))
    many = list(benchmark_items("vqav2_val", split="test", items=100, seed=3))
    assert many[:6] == few


def test_what_stands_is_kept_and_another_request_replaces_it(tmp_path) -> None:
    folder = write_sets(tmp_path / "sets", benchmarks=["gqa"], **REQUEST)
    mark = folder / "mark"
    mark.touch()
    write_sets(folder, benchmarks=["gqa"], **REQUEST)
    assert mark.exists()
    write_sets(folder, benchmarks=["pope"], **REQUEST)
    assert not mark.exists()
    assert [f.name for f in (folder / "lmms-lab-encoder").iterdir()] == ["POPE"]
    assert [f.name for f in tmp_path.iterdir()] == ["sets"]


def test_a_folder_of_an_older_world_is_written_anew(tmp_path) -> None:
    folder = write_sets(tmp_path / "sets", benchmarks=["gqa"], **REQUEST)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"world": "older"}))
    (folder / "mark").touch()
    write_sets(folder, benchmarks=["gqa"], **REQUEST)
    assert not (folder / "mark").exists()


def test_files_of_others_are_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="not the playground's"):
        write_sets(tmp_path, benchmarks=["gqa"], **REQUEST)
    assert (tmp_path / "thesis.txt").exists()


def test_gqa_keeps_each_picture_once_and_its_questions_name_it(tmp_path) -> None:
    folder = write_sets(tmp_path / "sets", benchmarks=["gqa"], **REQUEST) / "lmms-lab-encoder" / "GQA"
    questions = pq.read_table(folder / "testdev_balanced_instructions" / "testdev.parquet")
    pictures = pq.read_table(folder / "testdev_balanced_images" / "testdev.parquet")
    assert "image" not in questions.column_names
    assert pictures["id"].to_pylist() == list(dict.fromkeys(questions["imageId"].to_pylist()))


def test_every_problem_is_named_at_once(tmp_path) -> None:
    changes = ["evaluation.benchmarks=[gqq]", "evaluation.split=tset", "evaluation.items=1"]
    with pytest.raises(UserError) as caught:
        load(write(tmp_path), None, changes)
    assert caught.value.problems == (
        "override: evaluation.split: must be one of train, validation, test, hard, unseen, got 'tset' (did you mean 'test'?)",
        "override: evaluation.items: a benchmark asks at least 2 questions (MME's come in pairs), got 1",
        "override: evaluation.benchmarks.0: unknown benchmark, got 'gqq' (did you mean 'gqa'?)",
    )


def test_what_exists_only_in_the_playground_is_not_asked_of_the_hub(tmp_path) -> None:
    named = ["evaluation.benchmarks=[swap, gqa, mmvp, captions]"]
    assert load(write(tmp_path), None, named)
    with pytest.raises(UserError) as caught:
        load(write(tmp_path), None, [*named, "evaluation.world=hub"])
    assert caught.value.problems == (
        "override: evaluation.benchmarks.0: exists only in the playground, got 'swap' with world: hub",
        "override: evaluation.benchmarks.3: exists only in the playground, got 'captions' with world: hub",
    )


def test_the_fewest_questions_are_a_pair(tmp_path) -> None:
    with pytest.raises(UserError, match="at least 2"):
        local_sets(Evaluation(benchmarks=("mme",), items=1), tmp_path)


def test_writing_sets_imports_nothing_heavy() -> None:
    code = (
        "import sys, switchkd_cli.playground.benchmark_sets;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'lmms_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
