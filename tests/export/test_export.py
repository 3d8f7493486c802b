"""Exported students generate what our own forward pass does, in a process that has only torch and transformers.

In this environment, and in every other one whose Python is named in SWITCHKD_PYTHONS (separated by colons), such as
one with transformers 4.57: it needs torch, transformers and pillow, and nothing of this package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from switchkd_cli.engine.build import check_checkpoint, check_model
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.recipe.schema import Parts
from tests.export.test_written import READ, our_greedy, parts  # noqa: F401 (a fixture)
from tests.support import exported, tiny, tiny_llama

PYTHONS = [sys.executable, *filter(None, os.environ.get("SWITCHKD_PYTHONS", "").split(":"))]
SCRIPT = Path(exported.__file__)


def taught(folder: Path, spec: Parts, template: str):
    """A student of parts with random weights, saved as a run that was taught in `template` leaves it."""
    torch.manual_seed(1)
    model = check_model(spec, "student", needs_template=False).build().eval()
    rows = Rows([tiny.row("r", None, (exported.ASKED, "a dog"))], llava_row, images=folder)
    data = Conversations(rows, model.inputs, template=template)
    model.save(folder, template=data.chat_template, end=data.end)
    return model


@pytest.fixture(scope="module")
def students(parts, tmp_path_factory):  # noqa: F811
    """Of each kind of tokenizer: the playground's, Qwen's and Llama's."""
    home = tmp_path_factory.mktemp("exported")
    words = tiny_llama.words()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**READ, vocab_size=len(words))).save_pretrained(home / "llama")
    words.save_pretrained(home / "llama")
    made = {"playground": check_checkpoint("playground:teacher").build().eval()}
    made["playground"].save(home / "playground")
    for name, language, template in (
        ("chatml", parts / "qwen2", "chatml"),
        ("tinyllava", parts / "llama", "tinyllava"),
        ("llamas own", home / "llama", "llama"),
    ):
        spec = Parts(family="llava", vision=str(parts / "siglip"), language=str(language), feature_select="default")
        made[name] = taught(home / name, spec, template)
    return home, made


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@torch.no_grad()
def test_exported_students_generate_the_tokens_of_our_forward_pass(students, python):
    home, made = students
    folders = [str(home / name) for name in made]
    done = subprocess.run(
        [python, SCRIPT, *folders], check=False, capture_output=True, text=True, timeout=600, cwd=home
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for (name, model), said in zip(made.items(), json.loads(done.stdout.splitlines()[-1])["said"], strict=True):
        opened = check_checkpoint(str(home / name))
        pixels = model.inputs.processor.image_processor(exported.picture(), return_tensors="pt")["pixel_values"][0]
        wanted = our_greedy(model, said["prompt"], pixels, exported.LIMIT)
        ends = [i for i, token in enumerate(wanted) if token in opened.ends]
        wanted = wanted[: ends[0] + 1] if ends else wanted
        assert said["tokens"] == said["apart"] == wanted, name
        assert said["pipeline"].strip() == said["text"].strip(), name
        data = Conversations(
            Rows([tiny.row("r", tiny.picture(home, "r.png", 1), (exported.ASKED, "a"))], llava_row, images=home),
            opened.inputs,
        )
        assert data.text_example(0).input_ids.tolist()[: len(said["prompt"])] == said["prompt"], name
