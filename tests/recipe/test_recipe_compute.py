"""Rows at equal compute: their epochs or steps take the operations of the row that they stand next to, as docs/recipes.md says."""

from functools import cache
from pathlib import Path

import pytest

from switchkd_cli.engine.cost.flops import step
from switchkd_cli.engine.cost.model_facts import _published_model
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Models
from switchkd_cli.planning.estimate import planned_machine
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.schema import BUILT_IN, Checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"
CASES = [
    ("table1_0.5b", "sft-compute", "switch-kd"),
    ("table1_1.5b", "sft-compute", "switch-kd"),
    ("align_kd", "sft-compute", "switch-kd"),
    ("components", "sft-compute", "switch-kd"),
    ("loss", "sft-compute", "dbild"),
    ("knee", "sft-compute", "whole"),
    ("weights", "sft-compute", "switch-kd"),
    ("visual_encoder", "sft-compute", "switch-kd"),
    ("visual_encoder", "sft-of-teacher-frozen-compute", "switch-kd"),
    ("visual_encoder", "teachers-eyes-compute", "switch-kd"),
    ("teacher_size", "sft-small-compute", "t3-small"),
    ("teacher_size", "sft-large-compute", "t7-large"),
    ("training_scheme", "pt-sft-compute", "pt-dft"),
    ("methods/losses", "sft-compute", "kd"),
    ("methods/bits", "sft-compute", "switch-kd"),
    ("methods/mixers", "kd-compute", "deltaprompts"),
]
FAMILIES = [
    (f"families/{family}", "sft-compute", "switch-kd")
    for family in ("gemma3", "internvl3_5", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_to_smolvlm2", "smolvlm2")
]
OVERCOUNTED = ["features", "features-10", "eyes-features", "eyes-features-kd", "kd-cached", "inherit-kd-cached"]
OVERCOUNTED += ["inherit-align-cached"]
LONG = ["switch-kd", "vsd", "align", "sft", "sft-frozen"]
IN_PLAYGROUND = {  # there in steps. Left out is what the plan counts too high: own answers (`max_tokens`), features alone (the
    # whole teacher), cached states (in every epoch)
    "quickstart": ["switch-kd", "sft-compute"],
    "mechanisms": ["switch-kd", "switch-focused", "reverse-and-switch", "sft-compute"],
    "ours": [run.row for run in load_rows(RECIPES / "ours.yaml")],
    "candidates": [run.row for run in load_rows(RECIPES / "candidates.yaml") if run.row not in OVERCOUNTED],
    "equal_compute": LONG,
    "equal_compute, at SFT's": [f"{row}-short" for row in LONG],
}


@cache
def shape(spec):
    """A model's sizes as published, or those of the row that makes it."""
    if isinstance(spec, Checkpoint) and spec.checkpoint == "runs/align_kd/teacher/seed0/model":
        spec = next(run.config.student for run in load_rows(RECIPES / "align_kd.yaml") if run.row == "teacher")
    return _published_model(spec, "it").shape


def cost(run):
    """Operations of the second stage, for each row of its data once an epoch."""
    config, stage = run.config, run.config.stages[1]
    student = shape(config.student)
    taught = {"teacher": shape(config.teacher)} if stage.needs_teacher else {}
    models = Models({"student": student, **taught}, 1)
    computed = Computation(models, frozenset(stage.readings.values()), frozenset(stage.train))
    candidates = Computation(models, frozenset({BUILT_IN["student"], BUILT_IN["teacher"]}), frozenset())
    pictured = MicroBatch(1, 1, student.projector.tokens + 250, 100)
    text = MicroBatch(1, 0, 2048, 1348)
    read = stage.mixer.candidates if stage.mixer else 0  # for each row that is trained on
    return stage.epochs * sum(
        share * (step(batch, computed) + (read and read * step(batch, candidates)))
        for share, batch in ((0.94, pictured), (0.06, text))
    )


@pytest.mark.parametrize(("recipe", "control", "row"), CASES)
def test_the_control_costs_what_the_row_costs(recipe, control, row):
    runs = {run.row: run for run in load_rows(RECIPES / f"{recipe}.yaml")}
    assert cost(runs[control]) == pytest.approx(cost(runs[row]), rel=0.03)


def test_every_control_of_this_kind_is_compared():
    named = {
        (file.relative_to(RECIPES).with_suffix("").as_posix(), run.row)
        for file in (*RECIPES.glob("*.yaml"), *RECIPES.glob("methods/*.yaml"))
        for run in load_rows(file)
        if run.row.endswith("compute") and run.config.evaluation.world != "playground"
    }
    assert named == {(recipe, control) for recipe, control, _ in CASES}


def after_the_first_stage(runs, root):
    """Operations of what follows PT, by the plan, by row."""
    machine = planned_machine(None, "fp32")
    plans = {run.row: estimate_run(run, machine, root, {}).stages for run in runs}
    return {
        row: sum(stage.flops * stage.steps for stage in stages if stage.name != "pretrain")
        for row, stages in plans.items()
    }


@pytest.mark.parametrize("recipe", IN_PLAYGROUND)
def test_rows_in_the_playground_take_equal_operations_after_the_first_stage(recipe, tmp_path):
    rows = IN_PLAYGROUND[recipe]
    costs = after_the_first_stage(load_rows(RECIPES / f"{recipe.partition(',')[0]}.yaml", rows), tmp_path)
    assert costs == {row: pytest.approx(costs[rows[0]], rel=0.01) for row in rows}


@pytest.mark.parametrize(("recipe", "control", "row"), [*CASES, *FAMILIES])
def test_the_control_costs_what_the_row_costs_with_stand_ins_too(recipe, control, row, tmp_path):
    costs = after_the_first_stage(load_rows(RECIPES / f"{recipe}.yaml", [control, row], world="playground"), tmp_path)
    assert costs[control] == pytest.approx(costs[row], rel=0.02)


def test_the_control_of_a_student_of_other_tokens_costs_what_it_costs(tmp_path):
    """Each model's own tokens are counted. The reader is made by playground/reader_bpe.yaml, of these sizes."""
    (made,) = load_rows(RECIPES / "playground" / "reader_bpe.yaml")[:1]
    rows, change = ["switch-kd", "sft-compute"], f"student.language={made.config.student.language.model_dump_json()}"
    costs = after_the_first_stage(load_rows(RECIPES / "unlike_tokenizer.yaml", rows, [change]), tmp_path)
    assert costs["sft-compute"] == pytest.approx(costs["switch-kd"], rel=0.01)
