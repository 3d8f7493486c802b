"""lmms-eval's own `llava_hf` answers a saved model's questions as `switchkd eval` does, item by item.

It needs a `device_map` (transformers 5 refuses its default), takes one item at a time, and imports decord, a video
reader: where that is absent an empty module takes its place, as no video is shown.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.engine.build import check_checkpoint, check_model
from switchkd_cli.engine.data.prompt_template import template_text
from switchkd_cli.engine.evaluation import lmms_harness
from switchkd_cli.engine.evaluation.score_model import evaluate, local_sets
from switchkd_cli.recipe.schema import Evaluation, Parts
from tests.export.test_written import parts  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow

ITEMS = 6


@pytest.fixture
def llava_hf(monkeypatch):
    if importlib.util.find_spec("decord") is None:
        absent = types.ModuleType("decord")
        absent.VideoReader = absent.cpu = None
        monkeypatch.setitem(sys.modules, "decord", absent)
    from lmms_eval.models.simple.llava_hf import LlavaHf

    return LlavaHf


def compare(llava_hf, model: Path, place: Path, *tasks: str) -> list[str]:
    """Asserts equal answers and scores; returns the answers."""
    asked = {"world": "playground", "benchmarks": tasks, "split": "test", "items": ITEMS, "seed": 0}
    ours = evaluate(model, batch=4, folder=place / "ours", sets=place / "sets", **asked)
    theirs = llava_hf(pretrained=str(model), device="cpu", device_map="cpu", batch_size=1)
    questions, rows = Evaluation(**asked), [BENCHMARKS[task] for task in tasks]
    outcome = lmms_harness.run(theirs, rows, questions, place / "theirs", local_sets(questions, place / "sets"))
    answers = []
    for row in rows:
        lines = (place / "ours" / "answers" / f"{row.task}.jsonl").read_text().splitlines()
        mine = {line["doc_id"]: line["answer"] for line in map(json.loads, lines)}
        assert mine == {s["doc_id"]: s["filtered_resps"][0].strip() for s in outcome["samples"][row.task]}
        assert ours["scores"][row.task]["value"] == outcome["results"][row.task][f"{row.metric},none"]
        answers += mine.values()
    return answers


def test_the_shipped_teacher_saved_again(llava_hf, tmp_path):
    """A model that has learnt to answer: right and wrong answers of three kinds."""
    check_checkpoint("playground:teacher").build().save(tmp_path / "model")
    answers = compare(llava_hf, tmp_path / "model", tmp_path, "gqa", "pope", "mmbench_en_dev")
    assert len(set(answers)) > 3 and "" not in answers


@pytest.mark.parametrize("template", ["chatml", "qwen2_base"])
def test_a_student_that_was_taught_in_a_named_template(llava_hf, parts, template, tmp_path):  # noqa: F811
    """Random weights, so what it says depends on every token of the prompt and on where it ends."""
    spec = Parts(family="llava", vision=str(parts / "siglip"), language=str(parts / "qwen2"), feature_select="default")
    model = check_model(spec, "student", needs_template=False).build()
    end = "<|im_end|>" if template == "chatml" else "<|endoftext|>"
    model.save(tmp_path / "model", template=template_text(template, model.inputs.processor), end=end)
    assert len(set(compare(llava_hf, tmp_path / "model", tmp_path, "gqa"))) > 1
