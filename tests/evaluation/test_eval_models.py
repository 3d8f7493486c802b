"""`switchkd eval --model` on whatever people have: TinyLLaVA checkpoints in both layouts, Hugging Face LLaVA folders."""

import io
import json
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("lmms_eval")

import torch
from PIL import Image
from transformers import AutoTokenizer

from switchkd_cli import cli
from switchkd_cli.engine.build import check_model
from switchkd_cli.engine.data.prompt_template import template_text
from switchkd_cli.playground.benchmark_sets import benchmark_items
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.recipe.schema import Parts
from tests.export.test_written import parts  # noqa: F401 (a fixture)
from tests.models.test_tinyllava import SAYS
from tests.support import tinyllava_format as theirs

ITEMS, LONGEST = 3, 16


def switchkd(monkeypatch, *arguments) -> int | None:
    monkeypatch.setattr(sys, "argv", ["switchkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def scored(monkeypatch, place, model, *options) -> list[dict]:
    """The lines of GQA's answers."""
    monkeypatch.chdir(place)
    wanted = ("--model", str(model), "--benchmarks", "gqa", "--items", str(ITEMS), *options)
    assert not switchkd(monkeypatch, "eval", *wanted)
    (results,) = (place / "runs" / "evaluations").glob("*/results.json")
    assert json.loads(results.read_text())["scores"]["gqa"]["items"] == ITEMS
    return [json.loads(line) for line in (results.parent / "answers" / "gqa.jsonl").read_text().splitlines()]


def prepared(picture: bytes) -> torch.Tensor:
    """[1, 3, SIDE, SIDE]: resized to the tower's square and scaled to -1..1, as SigLIP is published."""
    shown = Image.open(io.BytesIO(picture)).convert("RGB").resize((theirs.SIDE, theirs.SIDE), Image.BICUBIC)
    return torch.from_numpy(np.asarray(shown, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def greedy(held, words, prompt: str, picture: bytes) -> str:
    """What TinyLLaVA's format says the model answers: its conversation, its forward pass, greedily."""

    def ids(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    row = [*ids(f"{SAYS}USER: "), theirs.IMAGE, *ids(f"\n{prompt} ASSISTANT:")]
    said: list[int] = []
    while len(said) < LONGEST:
        said.append(int(theirs.logits(held, [row + said], prepared(picture))[0][-1].argmax()))
        if said[-1] == words.eos_token_id:
            break
    return words.decode(said, skip_special_tokens=True).strip()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["fine-tuned", "pre-trained"])
@torch.no_grad()
def test_a_tinyllava_checkpoint_answers_as_its_format_says(layout, tmp_path, monkeypatch, capsys):
    tower = theirs.write_tower(tmp_path / "tower")
    held, told = theirs.state(), theirs.config(str(tower))
    if layout == "fine-tuned":
        folder, options = theirs.write_fine_tuned(tmp_path / "model", held, told), ()
    else:
        folder, options = theirs.write_pre_trained(tmp_path / "model", held, told), ("--allow-pickle",)
    lines = scored(monkeypatch, tmp_path, folder, *options)
    words = AutoTokenizer.from_pretrained(folder)
    rows = {row.number: row for row in benchmark_items("gqa", split="test", items=ITEMS, seed=0)}
    for line in lines:
        assert line["answer"] == greedy(held, words, line["prompt"], rows[line["doc_id"]].png)
    assert len({line["answer"] for line in lines}) > 1
    assert "GQA" in capsys.readouterr().out


def test_pickles_are_refused_by_eval_without_the_flag(tmp_path, monkeypatch, capsys):
    tower = theirs.write_tower(tmp_path / "tower")
    folder = theirs.write_pre_trained(tmp_path / "model", theirs.state(), theirs.config(str(tower)))
    monkeypatch.chdir(tmp_path)
    assert switchkd(monkeypatch, "eval", "--model", str(folder), "--benchmarks", "gqa", "--items", "2") == 2
    told = capsys.readouterr().err
    assert "only pickled weights" in told and "--allow-pickle" in told
    assert not list((tmp_path / "runs" / "evaluations").glob("*/results.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "select", "language", "projector"),
    [
        ("siglip", "default", "qwen2", "mlp2x_gelu"),
        ("clip", "default", "llama", "mlp2x_gelu"),
        ("clip", "default", "qwen2", "ldpnetv2"),
    ],
)
def test_a_hugging_face_folder_is_scored(parts, tower, select, language, projector, tmp_path, monkeypatch):  # noqa: F811
    spec = Parts(
        family="llava",
        vision=str(parts / tower),
        language=str(parts / language),
        projector=projector,
        feature_select=select,
    )
    model = check_model(spec, "student", needs_template=False).build()
    text = template_text("chatml", model.inputs.processor)
    model.save(tmp_path / "model", template=text, end="<|im_end|>")
    assert len(scored(monkeypatch, tmp_path, tmp_path / "model")) == ITEMS


@pytest.mark.slow
def test_a_wrong_end_in_generation_config_changes_no_answer_and_is_said(tmp_path, monkeypatch, capsys):
    """With it the answers ran on to the limit, and the score fell to 0 without a word."""
    whole = scored(monkeypatch, (tmp_path / "a").mkdir() or tmp_path / "a", "playground:teacher")
    model = shutil.copytree(ASSETS / "teacher", tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    capsys.readouterr()
    assert scored(monkeypatch, (tmp_path / "b").mkdir() or tmp_path / "b", model) == whole
    assert "note: model: its generation_config ends an answer with <|assistant|> (3)" in capsys.readouterr().err
    (results,) = (tmp_path / "b" / "runs" / "evaluations").glob("*/results.json")
    assert "<|end|>" in json.loads(results.read_text())["notes"][0]
