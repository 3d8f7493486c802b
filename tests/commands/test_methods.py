"""Every row of recipes/methods/: two real steps of each of its stages, on models of a few thousand parameters.

A world of their own stands in for the models and data that the recipes name, so that a new row, or a new file, needs no code.
"""

import json
import math
from functools import cache

import pytest
import torch
from torch.nn import ModuleDict
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from switchkd_cli import registry
from switchkd_cli.engine.build import check_pair
from switchkd_cli.engine.training.loop import train
from switchkd_cli.engine.training.validation import split
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.load import load_rows
from tests.support import tiny
from tests.support.shipped_recipes import RECIPES

FILES = sorted((RECIPES / "methods").glob("*.yaml"))
ROWS = [(file, row) for file in FILES for row in yaml_positions.read(file.read_text(), file.name)["rows"]]
SEEN: set[str] = set()  # stages that a row has taken
PACE = {"lr": 50.0, "batch": 1.0, "epoch": 50}  # steps for the most rounds of a mixer; two are taken


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the world `tiny`: the models and data of the world `playground`, smaller."""
    folder = tmp_path_factory.mktemp("methods")
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**tiny.VISION, vision_use_head=False)).save_pretrained(folder / "tower")
    size = {"height": tiny.VISION["image_size"], "width": tiny.VISION["image_size"]}
    SiglipImageProcessor(size=size).save_pretrained(folder / "tower")
    layers = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    words = {"vocab_size": 1872, "hidden_size": 16, "intermediate_size": 32, "eos_token_id": 1, "pad_token_id": 0}
    Qwen2ForCausalLM(Qwen2Config(**layers, **words)).save_pretrained(folder / "language")
    tiny.model(24, 4, seed=2, feature_layer=-1).save(folder / "teacher")
    (folder / "rows.json").write_text(json.dumps(tiny.rows(folder)))
    world = yaml_positions.read((RECIPES / "worlds" / "playground.yaml").read_text(), "playground.yaml")
    kinds = {name: stand_in.removeprefix("playground:").split("-")[0] for name, stand_in in world["models"].items()}
    parameters = {"file": str(folder / "rows.json"), "images": str(folder)}
    rows = {"source": "llava_json", "parameters": parameters, "pace": PACE}
    smaller = {name: str(folder / kind) for name, kind in kinds.items()}
    (folder / "recipes" / "worlds").mkdir(parents=True)
    wrong = [{**row, "rejected": "nothing of the kind"} for row in tiny.rows(folder)]
    (folder / "preferences.json").write_text(json.dumps(wrong))
    keys = {**registry.FORMATS["llava"], "rejected": "rejected"}
    pairs = {"file": str(folder / "preferences.json"), "images": str(folder), "format": keys}
    data = dict.fromkeys(world["data"], rows) | {"preferences": {**rows, "source": "files", "parameters": pairs}}
    tiny_world = {**world, "models": smaller, "data": data}
    (folder / "recipes" / "worlds" / "tiny.yaml").write_text(json.dumps(tiny_world))
    return folder


@cache
def runs(file):
    """The rows of a recipe, read once."""
    return {run.row: run for run in load_rows(file, world="tiny")}


@pytest.mark.parametrize(("file", "row"), ROWS, ids=[f"{file.stem}-{row}" for file, row in ROWS])
def test_two_steps_of_each_stage(file, row, here, monkeypatch):
    monkeypatch.chdir(here)
    config = runs(file)[row].config
    if any(stage.bits for stage in config.stages):
        pytest.importorskip("torchao")
    pair = check_pair(config, with_teacher=any(stage.needs_teacher for stage in config.stages))
    paths = pair.build(config.seed)
    for stage in config.stages:
        if stage != config.stages[-1] and stage.model_dump_json() in SEEN:  # most rows share the first one
            continue
        SEEN.add(stage.model_dump_json())
        paths.adapters = ModuleDict()  # which each stage draws anew
        before = {name: p.detach().clone() for name, p in paths.named_parameters()}
        small = stage.model_copy(update={"steps": 2, "batch": 4, "micro_batch": 2, "workers": 0, "warmup": 0.0})
        if small.mixer is not None:
            small = small.model_copy(update={"mixer": small.mixer.model_copy(update={"rounds": 2})})
        data, _ = split(small, {name: pair.open_data(name, paths.student, here) for name in stage.data_sets})
        lines = []
        train(small, paths, data, seed=config.seed, precision="fp32", log=lines.append)
        steps = [line for line in lines if "step" in line]
        assert len(steps) == 2
        for line in steps:
            values = [line[f"loss/{term.name}"] for term in stage.objective]
            assert all(map(math.isfinite, [line["loss"], *values]))
        names = {id(p): name for name, p in paths.named_parameters()}
        changed = {name for name, p in before.items() if not torch.equal(p, paths.get_parameter(name))}
        parts = {part: {names[id(p)] for p in paths.used_parameters(part)} for part in stage.train}
        assert all(changed & of_part for of_part in parts.values())
        assert changed <= set().union(*parts.values())
