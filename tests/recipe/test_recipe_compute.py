"""SFT "at Switch-KD's compute": its epochs are those that cost what the row beside it costs, as docs/recipes.md says."""

from functools import cache
from pathlib import Path

import pytest

from switchkd_cli.engine.cost.flops import step
from switchkd_cli.engine.cost.model_facts import _published_model
from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Models
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
    ("teacher_size", "sft-small-compute", "t3-small"),
    ("teacher_size", "sft-large-compute", "t7-large"),
    ("training_scheme", "pt-sft-compute", "pt-dft"),
    ("methods/losses", "sft-compute", "kd"),
    ("methods/bits", "sft-compute", "switch-kd"),
    ("methods/mixers", "kd-compute", "deltaprompts"),
]


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
        if run.row.endswith("compute") and run.config.evaluation.world != "playground"  # there in steps, as measured
    }
    assert named == {(recipe, control) for recipe, control, _ in CASES}
