"""Whole runs of a student with a narrower tower and another grid than its teacher's: warm-up, distillation, what is kept."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from switchkd_cli.engine import run_stages
from switchkd_cli.engine.build import check_pair
from switchkd_cli.engine.paths import FILE
from switchkd_cli.recipe.load import load, load_rows
from switchkd_cli.runs import run_folder
from tests.support import forked, tiny, tiny_run

VSD = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}
ALL = ["vision", "projector", "language"]
CE, ALIGN = tiny_run.DISTILL[:2]
WARM_UP = {"name": "warm", "data": "rows", "train": ["adapter"], "lr": 1e-2, "batch": 2, "steps": 4, "workers": 0}
WARM_UP |= {"objective": [VSD]}
DISTILL = {"name": "distill", "data": "rows", "lr": 1e-3, "batch": 4, "micro_batch": 2, "steps": 6, "workers": 0}
DISTILL |= {"train": [*ALL, "adapter"], "lr_scale": {"adapter": 0.1}, "objective": [CE, ALIGN, VSD]}
FROZEN = DISTILL | {"name": "frozen", "train": ALL, "lr_scale": {}, "steps": 3}
OTHER = ["switch={}", "stages.distill.train=[vision, projector, language]", "stages.distill.lr_scale={}"]
WITH = {"switch": {"adapter": "linear"}}


def write(folder, *stages, **more):
    recipe = tiny_run.write(folder, teacher=False, stages=list(stages), **more)
    tiny.model(24, seed=2, vision={"hidden_size": 32, "patch_size": 8}).save(folder / "teacher")
    content = recipe.read_text(encoding="utf-8")
    teacher = json.dumps({"family": "llava", "checkpoint": str(folder / "teacher")})
    recipe.write_text(content.replace("data:\n", f"teacher: {teacher}\ndata:\n", 1), encoding="utf-8")
    return recipe


def distilled(recipe, root, *words):
    program = forked.switchkd("distill", recipe, "--out", root, *words, cwd=root.parent)
    return program, root / "tiny" / "switch-kd" / "seed0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapted")
    recipe = write(place, WARM_UP, DISTILL, FROZEN, **WITH)
    program, folder = distilled(recipe, place / "runs")
    assert program.end() == 0, program.text
    return recipe, folder


def stage_output(recipe, folder, index):
    """Where a stage's student is, for all runs with the same beginning."""
    return run_folder.stage(folder.parents[2], load(recipe).stage_key(index)).path


def test_the_adapter_goes_from_stage_to_stage_and_learns_only_where_it_is_named(finished):
    recipe, folder = finished
    warm, distill, frozen = (load_file(stage_output(recipe, folder, i) / FILE) for i in range(3))
    assert warm.keys() == {"maps.0.weight", "maps.0.bias"} and warm["maps.0.weight"].shape == (32, 16)
    assert not torch.equal(warm["maps.0.weight"], distill["maps.0.weight"])
    assert all(torch.equal(distill[name], frozen[name]) for name in frozen)
    students = [load_file(stage_output(recipe, folder, i) / "model.safetensors") for i in range(2)]
    towers = [{n: p for n, p in of.items() if "vision_tower" in n} for of in students]
    assert any(not torch.equal(towers[0][n], towers[1][n]) for n in towers[0])


def test_the_warm_up_trains_the_adapter_and_nothing_of_the_student(finished, tmp_path):
    recipe, folder = finished
    before = check_pair(load(recipe).config, with_teacher=True).build(0)
    before.student.save(tmp_path / "before")
    drawn = load_file(tmp_path / "before" / "model.safetensors")
    after = load_file(stage_output(recipe, folder, 0) / "model.safetensors")
    assert drawn.keys() == after.keys() and all(torch.equal(drawn[name], after[name]) for name in drawn)
    adapter = load_file(stage_output(recipe, folder, 0) / FILE)
    assert not torch.equal(adapter["maps.0.weight"], before.switch_adapter.maps[0].weight)


def test_the_exported_student_has_no_adapter_and_stock_classes_read_it(finished):
    _, folder = finished
    model = folder / "model"
    assert FILE not in {path.name for path in model.iterdir()}
    for file in model.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            assert not [name for name in weights.keys() if "adapter" in name or "maps" in name]  # noqa: SIM118
    _, told = AutoModelForImageTextToText.from_pretrained(model, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoProcessor.from_pretrained(model).image_token == "<image>"


def test_the_share_of_the_switch_s_gradient_that_reaches_v_s_is_logged_where_both_learn(finished):
    _, folder = finished
    shares = [
        (line["stage"], line["vision_share/vsd"]) for line in tiny_run.trace(folder) if "vision_share/vsd" in line
    ]
    assert {stage for stage, _ in shares} == {"distill"}
    assert all(0 < share < 1 for _, share in shares)
    rates = [line for line in tiny_run.trace(folder) if line.get("stage") == "distill" and "lr/adapter" in line]
    assert rates and all(line["lr/adapter"] == pytest.approx(0.1 * line["lr"]) for line in rates)


@pytest.mark.parametrize("steps", [5, 8, 11])
def test_a_killed_run_resumes_bit_equal(finished, tmp_path, steps):
    """In the second and the third stage, whose adapter is another stage's."""
    recipe, expected = finished
    program, folder = distilled(recipe, tmp_path / "runs")
    program.when(lambda: forked.steps(folder) >= steps).process.kill()
    assert program.end() < 0
    program, folder = distilled(recipe, tmp_path / "runs")
    assert program.end() == 0, program.text
    assert tiny_run.trace(folder) == tiny_run.trace(expected)
    for index in range(3):
        ours, theirs = (stage_output(recipe, of, index) for of in (folder, expected))
        assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in (FILE, "model.safetensors"))


def test_without_an_adapter_the_pair_is_refused_with_what_to_add(tmp_path):
    recipe = write(tmp_path, DISTILL | {"train": ALL, "lr_scale": {}})
    for words in ((), ("--dry-run",)):
        program, _ = distilled(recipe, tmp_path / "runs", *words)
        assert program.end() == 2
        assert "teacher: vision width is 32, the student's is 16" in program.text
        assert "teacher: patch grid is 3 x 3, the student's is 2 x 2" in program.text
        assert "switch.adapter=linear" in program.text
    program, _ = distilled(recipe, tmp_path / "runs", "--dry-run", "switch.adapter=linear")
    assert program.end() == 2 and "the switch's adapter was never trained" in program.text
    train = "stages.distill.train=[vision, projector, language, adapter]"
    program, _ = distilled(recipe, tmp_path / "runs", "--dry-run", "switch.adapter=linear", train)
    assert program.end() == 0, program.text
    assert "switch.adapter: 544 parameters, not saved with the student" in program.text  # (16 + 1) x 32


def test_rows_with_and_without_an_adapter_share_the_stages_that_have_no_switch(tmp_path):
    plain = DISTILL | {"name": "first", "train": ALL, "lr_scale": {}, "objective": [CE]}
    recipe, run = (made := write(tmp_path, plain, DISTILL, **WITH)), load(made)
    (other,) = load_rows(recipe, overrides=OTHER)
    assert run.stage_key(0) == other.stage_key(0) and run.stage_key(1) != other.stage_key(1)
    assert run.key != other.key


def test_a_student_that_was_trained_without_the_teacher_is_compared_with_it(tmp_path):
    """No stage made rows for the teacher, which reads more visual tokens."""
    recipe = write(tmp_path, DISTILL | {"train": ALL, "lr_scale": {}, "objective": [CE], "steps": 1}, **WITH)
    program, path = distilled(recipe, tmp_path / "runs")
    assert program.end() == 0, program.text
    (about, found), *others = run_stages._compare_with_teacher(load(recipe), run_folder.RunFolder(path), {})
    assert about == "fidelity" and found["positions"] > 0 and 0 < found["kl"] < 10 and not others
