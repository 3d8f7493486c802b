"""The recipes of recipes/families/: their models' parameters, and two steps of each row on tiny models of their families."""

import json

import numpy as np
import pytest
from PIL import Image

from switchkd_cli.engine.cost.model_facts import describe_model, published
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.schema import Checkpoint
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support import stock_models
from tests.support.shipped_recipes import RECIPES

FILES = sorted((RECIPES / "families").glob("*.yaml"))
PARAMETERS = {  # as the model cards and the headers of the published weights have them
    "OpenGVLab/InternVL3_5-8B-HF": 8_528_318_464,
    "OpenGVLab/InternVL3_5-1B-HF": 1_060_897_792,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 507_482_304,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": 256_484_928,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-4b-it": 4_300_079_472,
}


def test_the_parameters_of_a_plan_are_the_published_ones():
    counted = {
        name: describe_model(Checkpoint(checkpoint=name), "student", {}).shape.parameters
        for name, fields in published()["models"].items()
        if fields["model_type"] != "llava"
    }
    assert counted == PARAMETERS


def test_all_models_of_these_recipes_are_known():
    named = {
        model.checkpoint
        for file in FILES
        for run in load_rows(file)
        for model in (run.config.student, run.config.teacher)
    }
    assert named == set(PARAMETERS)


@pytest.fixture
def rows(tmp_path):
    """Four conversations about an image, the first answer of each with letters of several bytes."""
    told, random = [], np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        turns = [("<image>\nWhat is it?", "a 猫, a café"), ("Is it red?", "no")]
        words = [
            {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        told.append({"id": str(number), "image": f"{number}.png", "conversations": words})
    (tmp_path / "rows.json").write_text(json.dumps(told))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_two_steps_of_each_row_on_tiny_models_of_its_families(file, rows):
    config = load_rows(file)[0].config
    wider = {"hidden_size": 64} if config.switch.adapter else {}  # the teacher's tower
    sizes = {
        "student": {"width": 32, "layers": 2, "seed": 1},
        "teacher": {"width": 48, "layers": 3, "seed": 2, **wider},
    }
    changes = ["precision=fp32", "deepspeed.zero=0", "evaluation=null"]
    for who, size in sizes.items():
        family = published()["models"][getattr(config, who).checkpoint]["model_type"]
        changes += [f"{who}.checkpoint={stock_models.save(family, rows / who, **size)}"]
    changes += [f"data.llava_665k.parameters.file={rows}/rows.json", f"data.llava_665k.parameters.images={rows}"]
    of_stages = ("epochs=null", "steps=2", "batch=2", "micro_batch=1")
    for run in load_rows(
        file, overrides=[*changes, *(f"stages.{s.name}.{c}" for s in config.stages for c in of_stages)]
    ):
        folder = launch.run_one(run, RunOptions(out=rows / "runs"))
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        steps = [line for line in lines if line.get("stage") == "distill" and "step" in line]
        assert len(steps) == 2 and (folder.model / "model.safetensors").is_file()
        for term in run.config.stages[-1].objective:
            assert all(line[f"loss/{term.name}"] > 0 for line in steps)
