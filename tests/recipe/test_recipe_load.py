"""Recipes become frozen runs: rows, overrides, resolved text and keys."""

import pickle
import subprocess
import sys

import pytest
from pydantic import ValidationError

from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load, load_many, load_rows
from tests.support.small_recipe import write


def terms(run, stage=1):
    return [term.name for term in run.config.stages[stage].objective]


def test_the_first_row_is_the_default(tmp_path):
    run = load(write(tmp_path))
    assert (run.recipe, run.row, run.title, run.seed) == ("small", "switch-kd", "Switch-KD", 0)
    assert run.paper == {"gqa": 61.6, "average": 60.1}
    assert terms(run) == ["ce", "align", "vsd"]
    assert run.config.stages[0].lr == 1e-3
    assert run.config.rows == {} and run.config.controls == ()


def test_a_row_drops_and_sets(tmp_path):
    run = load(write(tmp_path), "long")
    assert terms(run) == ["ce", "align"]
    assert run.config.stages[1].steps == 20
    assert run.config.stages[1].objective[1].weight == 2.0
    assert run.title == "long"


def test_a_term_is_named_by_its_loss(tmp_path):
    assert terms(load(write(tmp_path)), stage=0) == ["cross_entropy"]


def test_paths_follow_from_the_terms(tmp_path):
    file = write(tmp_path)
    assert load(file).config.stages[1].paths == {"student", "teacher", "switch"}
    assert load(file, "long").config.stages[1].paths == {"student", "teacher"}
    assert load(file, "sft").config.stages[1].paths == {"student"}
    assert not load(file, "sft").config.stages[1].needs_teacher


def test_overrides_are_yaml_and_go_into_the_resolved_text(tmp_path):
    changes = ["stages.distill.lr=1e-4", "stages.distill.train=[projector, language]", "stages.distill.lr_scale={}"]
    run = load(write(tmp_path), "sft", changes, seed=7)
    stage = run.config.stages[1]
    assert (stage.lr, stage.train, run.seed) == (1e-4, ("projector", "language"), 7)
    assert "lr: 0.0001" in run.text and "seed: 7" in run.text


def test_an_override_may_be_meant_for_another_of_the_rows(tmp_path):
    change = ["stages.distill.objective.vsd.weight=3"]
    main, control = load_rows(write(tmp_path), [None], change, controls=True)
    assert main.config.stages[1].objective[2].weight == 3
    assert (control.row, terms(control)) == ("sft", ["ce"])
    with pytest.raises(UserError, match="override: stages.distill.objective.vsd.weight: no such field"):
        load(tmp_path / "small.yaml", "sft", change)


def test_rows_come_in_file_order(tmp_path):
    file = write(tmp_path)
    assert [run.row for run in load_rows(file)] == ["switch-kd", "sft", "long"]
    assert [run.row for run in load_rows(file, ["long", "switch-kd"])] == ["switch-kd", "long"]


def test_controls_do_not_repeat_the_chosen_row(tmp_path):
    assert [run.row for run in load_rows(write(tmp_path), ["sft"], controls=True)] == ["sft"]


def test_a_recipe_without_rows_has_one(tmp_path):
    file = write(tmp_path, ("controls: [sft]\n", ""))
    file.write_text(file.read_text()[: file.read_text().index("rows:")])
    run = load(file)
    assert (run.row, run.title) == ("base", "small")


def test_the_resolved_text_is_a_recipe_of_the_same_run(tmp_path):
    for run in load_rows(write(tmp_path)):
        again = tmp_path / "again.yaml"
        again.write_text(run.text)
        assert load(again).config == run.config
        assert load(again).text == run.text
        assert load(again).key == run.key


def test_a_run_survives_the_way_to_another_process(tmp_path):
    run = load(write(tmp_path), "sft")
    assert pickle.loads(pickle.dumps(run)) == run


def test_runs_are_frozen(tmp_path):
    run = load(write(tmp_path))
    with pytest.raises(ValidationError):
        run.config.stages[0].lr = 1.0
    with pytest.raises(AttributeError):
        run.row = "other"


def test_rows_share_the_keys_of_stages_they_share(tmp_path):
    runs = load_rows(write(tmp_path))
    assert len({run.key for run in runs}) == 3
    assert len({run.stage_key(0) for run in runs}) == 1
    assert len({run.stage_key(1) for run in runs}) == 3
    assert len({run.teacher_key for run in runs}) == 1


@pytest.mark.parametrize(
    ("change", "first", "second"),
    [
        ("stages.distill.lr=1e-5", True, False),
        ("stages.pretrain.lr=1e-5", False, False),
        ("data.questions.parameters.limit=4", True, False),
        ("data.captions.parameters.limit=4", False, False),
        ("seed=3", False, False),
        ("precision=bf16", False, False),
        ("student.feature_layer=-1", False, False),
        ("teacher.checkpoint=./other", True, False),
        ("evaluation.items=9", True, True),
        ("title=another", True, True),
    ],
)
def test_a_stage_key_changes_with_what_the_stage_depends_on(tmp_path, change, first, second):
    (tmp_path / "other").mkdir()
    file = write(tmp_path)
    before, after = load(file), load(file, overrides=[change])
    assert (before.stage_key(0) == after.stage_key(0)) is first
    assert (before.stage_key(1) == after.stage_key(1)) is second


def test_titles_do_not_change_a_run_but_scores_do(tmp_path):
    file = write(tmp_path)
    assert load(file).key == load(file, overrides=["title=another"]).key
    assert load(file).key != load(file, overrides=["evaluation.items=9"]).key


def test_a_changed_checkpoint_is_another_one(tmp_path):
    file = write(tmp_path)
    before = load(file).stage_key(0), load(file).key
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    assert load(file).stage_key(0) != before[0]
    assert load(file).key != before[1]


def test_keys_are_the_same_in_every_process(tmp_path):
    file = write(tmp_path)
    code = f"from switchkd_cli.recipe.load import load; r = load({str(file)!r}); print(r.key, r.stage_key(1))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [load(file).key, load(file).stage_key(1)]


def test_the_leading_stages_need_no_teacher(tmp_path):
    file = write(tmp_path)
    leading = load(file).leading()
    assert [stage.name for stage in leading.config.stages] == ["pretrain"]
    assert leading.row == "switch-kd.pretrain"
    assert leading.config.evaluation is None
    assert leading.stage_key(0) == load(file).stage_key(0)
    bare = load(file, "sft", ["evaluation=null"])
    assert bare.leading() is bare
    all_distilled = write(tmp_path, ("objective: [{loss: cross_entropy}]", "objective: [{loss: dbild, to: teacher}]"))
    with pytest.raises(UserError, match="needs the teacher"):
        load(all_distilled).leading()


def test_a_validation_is_part_of_its_stage_s_key_and_absent_from_recipes_without_one(tmp_path):
    """Runs from before there were validations are found again."""
    before = load(write(tmp_path))
    assert "validation:" not in before.text
    others = ("  questions:", "  others: {source: llava_json, parameters: {file: others.json, limit: 5}}\n  questions:")
    with_data = load(write(tmp_path, others))
    assert [with_data.stage_key(i) for i in range(2)] == [before.stage_key(i) for i in range(2)]
    validated = ("steps: 10", "steps: 10\n    validation: {data: others, every_steps: 5}")
    after = load(write(tmp_path, others, validated))
    assert after.stage_key(0) == before.stage_key(0) and after.stage_key(1) != before.stage_key(1)
    more = load(write(tmp_path, others, validated, ("limit: 5", "limit: 6")))
    assert more.stage_key(0) == after.stage_key(0) and more.stage_key(1) != after.stage_key(1)


def test_the_best_of_a_later_stage_is_none_of_the_leading_ones(tmp_path):
    """Its text is a recipe, whatever figure the whole recipe is chosen by."""
    file = write(tmp_path)
    for best, kept in (("loss/vsd", None), ("loss", "loss"), ("loss/cross_entropy", "loss/cross_entropy")):
        leading = load(file, overrides=[f"checkpoints.best={best}"]).leading()
        assert leading.config.checkpoints.best == kept
        again = tmp_path / "again.yaml"
        again.write_text(leading.text)
        assert load(again).config == leading.config


def test_seeds_count_from_each_row_s_own_first(tmp_path):
    file = write(tmp_path, ("sft: {title: SFT,", "sft: {title: SFT, set: {seed: 2},"))
    (runs,) = load_many([str(file)], ["switch-kd", "sft"], seeds=3).values()
    assert [(run.row, run.seed) for run in runs] == [
        *(("switch-kd", seed) for seed in (0, 1, 2)),
        *(("sft", seed) for seed in (2, 3, 4)),
    ]
    assert len({run.key for run in runs}) == 6
    (runs,) = load_many([str(file)], ["switch-kd", "sft"], seeds=2, seed=5).values()
    assert [run.seed for run in runs] == [5, 6, 5, 6]


@pytest.mark.parametrize("change", ["world=playground", "stand_ins={}", "rows.sft.title=x", "controls=[sft]"])
def test_no_change_chooses_a_row_or_a_world(tmp_path, change):
    with pytest.raises(UserError, match="chosen with --"):
        load(write(tmp_path), overrides=[change])
    key, value = change.split("=")
    with pytest.raises(UserError, match=rf"small.yaml:\d+: rows.long.set.{key}: .* chosen with --"):
        load(write(tmp_path, ("set: {stages.distill.steps: 20", f"set: {{{key}: {value}, stages.distill.steps: 20")))
