"""SFT "at Switch-KD's compute": its epochs are those that cost what the row beside it costs, as docs/recipes.md says."""

from pathlib import Path

import pytest

from switchkd_cli.engine.cost.flops import step
from switchkd_cli.engine.cost.workload import Computation, MicroBatch
from switchkd_cli.engine.models.shape import LanguageShape, ModelShape, ProjectorShape, VisionShape
from switchkd_cli.recipe.load import load_rows

RECIPES = Path(__file__).parents[2] / "recipes"
TOWERS = {
    "google/siglip-so400m-patch14-384": VisionShape(1152, 4304, 26, 729, 14, 384, "gelu_pytorch_tanh"),
    "openai/clip-vit-large-patch14-336": VisionShape(1024, 4096, 23, 577, 14, 336, "quick_gelu"),
}
READERS = {
    "0.5B": LanguageShape(896, 4864, 24, 14, 896, 128, 151_936),
    "1.5B": LanguageShape(1536, 8960, 28, 12, 1536, 256, 151_936),
    "3B": LanguageShape(2048, 11_008, 36, 16, 2048, 256, 151_936),
    "7B": LanguageShape(3584, 18_944, 28, 28, 3584, 512, 152_064),
}
TEACHERS = {
    "Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP": "3B",
    "CERTH-ITI-IDT/tiny-llava-Qwen2.5-7B-siglip-so400m-patch14-384": "7B",
    "runs/align_kd/teacher/seed0/model": "3B",
}
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
    ("methods", "sft-compute", "kd"),
]


def shape(config, reader):
    """A model of the recipe's tower and projector around a language model."""
    tower = TOWERS[config.student.vision]
    features = (tower.image // tower.patch) ** 2 - (tower.patch == 14 and tower.image == 384)
    tokens = features // 4 if config.student.projector == "ldpnetv2" else features
    return ModelShape(tower, ProjectorShape(tower.width, READERS[reader].width, features, tokens), READERS[reader])


def cost(run):
    """Operations of the second stage, for each row of its data once an epoch."""
    config, stage = run.config, run.config.stages[1]
    student = shape(config, config.student.language.removeprefix("Qwen/Qwen2.5-").removesuffix("-Instruct"))
    teacher = shape(config, TEACHERS[config.teacher.checkpoint]) if stage.needs_teacher else None
    computed = Computation(stage.paths, frozenset(stage.train))
    pictured = MicroBatch(1, 1, student.projector.tokens + 250, 100)
    text = MicroBatch(1, 0, 2048, 1348)
    return stage.epochs * sum(
        share * step(student, teacher, batch, computed) for share, batch in ((0.94, pictured), (0.06, text))
    )


@pytest.mark.parametrize(("recipe", "control", "row"), CASES)
def test_the_control_costs_what_the_row_costs(recipe, control, row):
    runs = {run.row: run for run in load_rows(RECIPES / f"{recipe}.yaml")}
    assert cost(runs[control]) == pytest.approx(cost(runs[row]), rel=0.03)


def test_every_control_of_this_kind_is_compared():
    named = {
        (file.stem, run.row)
        for file in RECIPES.glob("*.yaml")
        for run in load_rows(file)
        if run.row.endswith("compute") and run.config.evaluation.world != "playground"  # there in steps, as measured
    }
    assert named == {(recipe, control) for recipe, control, _ in CASES}
