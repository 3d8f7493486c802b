"""The names of lmms-eval's tasks are known without importing it, to recipes and to the command line."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("lmms_eval")

from switchkd_cli import benchmarks
from switchkd_cli.commands.evaluate import evaluate
from switchkd_cli.commands.options import EvalOptions
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.recipe.validate import check
from switchkd_cli.scheduler import launch


def problems(*names: str, **more) -> dict[tuple, str]:
    recipe = {"evaluation": {"world": "hub", "benchmarks": [*names], **more}}
    return {path: text for path, text in check(recipe) if path[0] == "evaluation"}


def test_every_task_and_group_of_lmms_eval_is_a_benchmark() -> None:
    assert problems("ai2d", "chartqa", "mmstar", "refcoco+_bbox_rec_val", "coco_caption", "gqa") == {}
    assert benchmarks.expanded("coco_caption") == ["coco2014_cap_test", "coco2014_cap_val"]
    assert benchmarks.expanded("ai2d") == ["ai2d"]
    # a comment stands between the two in lmms-eval's file
    assert benchmarks.expanded("mmmu_pro") == ["mmmu_pro_vision", "mmmu_pro_standard"]


def test_a_near_miss_is_named_from_all_of_them() -> None:
    assert problems("ai2dd", "chartqq") == {
        ("evaluation", "benchmarks", 0): "unknown benchmark, got 'ai2dd' (did you mean 'ai2d'?)",
        ("evaluation", "benchmarks", 1): "unknown benchmark, got 'chartqq' (did you mean 'chartqa'?)",
    }


def test_the_playground_has_questions_for_its_own_only() -> None:
    found = problems("ai2d", "gqa", world="playground", items=4)
    assert list(found) == [("evaluation", "benchmarks", 0)]
    assert "the playground has no questions for it, got 'ai2d' (with world: hub it can be asked)" in found.popitem()[1]


def test_a_folder_of_tasks_adds_its_names_and_must_be_there(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndoc_to_text: !function own.text\n")
    assert problems("mine", tasks_path=str(tmp_path)) == {}
    found = problems("mine", tasks_path=str(tmp_path / "absent"))
    assert found[("evaluation", "tasks_path")] == f"no such folder, got '{tmp_path / 'absent'}'"


def test_names_are_known_without_importing_lmms_eval() -> None:
    code = "import sys; from switchkd_cli import benchmarks as s; s.known_tasks(); s.needs(['hallusion_bench_image'])"
    code += "; print(sorted({'lmms_eval', 'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_what_a_task_needs_is_named() -> None:
    data = "ai2d needs data lmms-lab-encoder/ai2d (network, unless cached; gated data: hf auth login)"
    assert benchmarks.needs(["ai2d", "gqa", "ai2d"]) == [data]
    assert any("needs a judge model" in need for need in benchmarks.needs(["hallusion_bench_image"]))


def test_what_a_recipe_s_benchmarks_need_is_said_before_it_is_trained(monkeypatch, capsys) -> None:
    monkeypatch.setattr(launch.preflight, "check", lambda planned: None)
    evaluation = Evaluation(world="hub", benchmarks=("ai2d",))
    config = SimpleNamespace(evaluation=evaluation, student=None, teacher=None, models={})
    launch.check([SimpleNamespace(config=config), SimpleNamespace(config=config)])
    assert capsys.readouterr().err.count("ai2d needs data") == 1


def test_a_task_that_wants_no_written_answer_is_refused() -> None:
    problem = "only generate_until tasks can be asked here, got 'seedbench_ppl' (seedbench_ppl is multiple_choice)"
    assert problems("seedbench_ppl") == {("evaluation", "benchmarks", 0): problem}


def test_eval_says_what_it_cant_ask_before_it_looks_for_a_model(tmp_path) -> None:
    options = EvalOptions(model=str(tmp_path), benchmarks=["ai2dd", "mmee"], tasks_path=tmp_path)
    with pytest.raises(UserError) as error:
        evaluate(options)
    assert list(error.value.problems) == [
        "--benchmarks: unknown benchmark, got 'ai2dd' (did you mean 'ai2d'?)",
        "--benchmarks: unknown benchmark, got 'mmee' (did you mean 'mme'?)",
    ]


@pytest.mark.slow
def test_the_scan_finds_what_lmms_eval_itself_lists() -> None:
    from lmms_eval.tasks import TaskManager

    listed = TaskManager()
    found = benchmarks.known_tasks()
    assert set(listed.all_tasks) <= set(found)
    assert set(listed.all_subtasks) == {
        name for name, task in found.items() if not task.members and task.kind != "python class"
    }
