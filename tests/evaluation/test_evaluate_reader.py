"""A saved checkpoint that reads: in batches, blindly, and just as transformers does one by one."""

import io
import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

import datasets
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from switchkd_cli.engine.build import load
from switchkd_cli.engine.data.image import open_image
from switchkd_cli.engine.evaluation.generate import GreedyModel
from switchkd_cli.engine.evaluation.lmms_model import Item
from switchkd_cli.engine.evaluation.score_model import evaluate, score_request
from switchkd_cli.playground.benchmark_sets import benchmark_items
from switchkd_cli.playground.text.questions import prompt
from switchkd_cli.recipe.schema import Evaluation
from tests.support.tiny_llava import save_tiny_llava

TASKS = ("pope", "textvqa_val", "mmbench_cn_dev")
ASKED = {"world": "playground", "benchmarks": TASKS, "split": "test", "items": 8, "seed": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


def lines(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers" / f"{task}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def answered(checkpoint: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("run")
    return evaluate(checkpoint, batch=5, folder=folder, sets=sets, **ASKED), folder


def test_every_item_is_answered_and_scored(answered: tuple[dict, Path]) -> None:
    results, folder = answered
    assert list(results["scores"]) == list(TASKS)
    for task in TASKS:
        assert results["scores"][task]["items"] == 8
        assert [line["doc_id"] for line in lines(folder, task)] == list(range(8))
        for line in lines(folder, task):
            assert line.keys() >= {"key", "prompt", "answer", "target", "score"}
    assert results["versions"]["lmms-eval"] == "0.7.3"
    assert all(results["versions"].values()), results["versions"]
    assert json.loads(json.dumps(results)) == results


def test_pictures_are_seen_as_training_sees_them() -> None:
    """Turned as their EXIF says, by `datasets` or, where it leaves that to others, here; never twice."""
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((24, 48), 50).save(stored, "PNG", exif=exif)
    trained = open_image(stored.getvalue(), None)
    decoded = datasets.Image().decode_example({"bytes": stored.getvalue(), "path": None})
    for shown in (decoded, Image.open(stored), Image.open(stored).convert("RGB")):
        row = {"image": shown, "answer": "yes"}
        item = Item("pope", 0, "", [row], lambda doc: [doc["image"].convert("RGB")], limit=1, until=())
        item.read()
        (picture,) = item.images
        assert picture.size == (48, 24) and picture.tobytes() == trained.tobytes()


def test_batched_answers_are_those_of_transformers_one_by_one(answered: tuple[dict, Path], checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    given = {line["doc_id"]: line["answer"] for line in lines(answered[1], "textvqa_val")}
    for row in benchmark_items("textvqa_val", split="test", items=8, seed=0):
        content = [{"type": "image"}, {"type": "text", "text": prompt(row.question)}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=Image.open(io.BytesIO(row.png)), text=text, return_tensors="pt")
        with torch.inference_mode():
            written = model.generate(**inputs, do_sample=False, max_new_tokens=16)
        new = written[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(new, skip_special_tokens=True).strip() == given[row.number]


@pytest.mark.parametrize("stops", [True, False])
def test_answers_that_reach_the_limit_without_an_end_are_counted(
    checkpoint: Path, sets: Path, tmp_path: Path, stops: bool
) -> None:
    reader = GreedyModel(load(str(checkpoint)), batch=5, playground=True)
    every = reader.model.model.config.text_config.vocab_size
    reader.model.model.generation_config.eos_token_id = list(range(every)) if stops else every + 7
    tasks = ("textvqa_val", "vizwiz_vqa_val")  # no stop words that this model writes
    results = score_request(
        reader, Evaluation(world="playground", benchmarks=tasks, split="test", items=8, seed=0), tmp_path, sets
    )
    assert [score["at_limit"] for score in results["scores"].values()] == [0 if stops else 8] * 2
    assert all(("at_limit" in line["faults"]) != stops for task in tasks for line in lines(tmp_path, task))


@pytest.mark.parametrize("most", [20, 4096])
def test_answers_past_a_model_s_positions_are_counted(checkpoint: Path, sets: Path, tmp_path: Path, most: int) -> None:
    """An image alone takes 36 tokens."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    told = json.loads((folder / "config.json").read_text())
    told["text_config"]["max_position_embeddings"] = most
    (folder / "config.json").write_text(json.dumps(told))
    results = evaluate(folder, batch=5, folder=tmp_path, sets=sets, **ASKED | {"benchmarks": ("pope",)})
    assert results["scores"]["pope"]["too_long"] == (8 if most == 20 else 0)


def test_a_seeing_model_answers_pictures_and_a_blind_one_prompts(
    answered: tuple[dict, Path], checkpoint: Path, sets: Path, tmp_path: Path
) -> None:
    results = evaluate(checkpoint, batch=5, folder=tmp_path, sets=sets, blind=True, **ASKED)
    assert results["blind"]
    assert results["sets_key"] == answered[0]["sets_key"]

    def most_answers_to_one_prompt(folder: Path) -> int:
        said = defaultdict(set)
        for line in lines(folder, "textvqa_val"):
            said[line["prompt"]].add(line["answer"])
        return max(map(len, said.values()))

    assert most_answers_to_one_prompt(answered[1]) > 1
    assert most_answers_to_one_prompt(tmp_path) == 1


def test_printing_is_left_to_the_command_line(
    checkpoint: Path, sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(checkpoint, batch=24, folder=tmp_path, sets=sets, **ASKED)
    assert capfd.readouterr() == ("", "")
