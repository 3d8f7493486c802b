"""The paper's two files in their folder layout, sizes cut, from a recipe to a finished model."""

import json
import sys

import pytest
from transformers import AutoProcessor

from switchkd_cli import cli
from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.build import open_data
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.recipe.schema import DataSet
from tests.support import tiny, tiny_qwen
from tests.support.square_inputs import SquareInputs

FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
DATA = {
    "captions": {
        "source": "llava_json",
        "parameters": {"file": "pretrain/blip_laion_cc_sbu_558k.json", "images": "pretrain/images"},
        "template": "pretrain",
        "max_length": 64,
    },
    "instructions": {
        "source": "llava_json",
        "parameters": {"file": "finetune/llava_v1_5_mix665k.json", "images": "finetune"},
        "template": "qwen2_base",
        "max_length": 64,
    },
}
LANGUAGE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def write_captions(folder):
    """LCS-558K: `00000/000000012.jpg`, one turn, placeholder before or after the instruction."""
    rows = []
    for number in range(120):
        (folder / "images" / f"{number % 3:05}").mkdir(parents=True, exist_ok=True)
        image = f"{number % 3:05}/{number:09}.jpg"
        tiny.picture(folder / "images", image, number)
        asked = ("How many dogs?\n<image>", "<image>\nWhat is it?")[number % 2]
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "a dog"}]
        rows.append({"id": f"{number:09}", "image": image, "conversations": turns})
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))


def write_instructions(folder):
    """The 665K mix: six image folders, ids of two types, text-only rows with a `model` key, one picture lost."""
    rows = []
    for number in range(120):
        place = (*FOLDERS, None)[number % 7]
        row = {"id": number if place == "vg/VG_100K" else f"{number:012}"}
        if place is None:
            row |= tiny.row("", None, ("How many dogs?", "two")) | {"id": f"text{number}", "model": ""}
        else:
            (folder / place).mkdir(parents=True, exist_ok=True)
            image = tiny.picture(folder, f"{place}/{number:012}.jpg", number)
            row |= {"image": image}
            asked = [("How many dogs?", "two"), ("What is it?", "a dog")][: 1 + number % 2]
            row["conversations"] = tiny.row("", image, *asked)["conversations"]
        rows.append(row)
    (folder / rows[8]["image"]).unlink()
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(rows, indent=2))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_captions(tmp_path / "pretrain")
    write_instructions(tmp_path / "finetune")
    processor = tiny_qwen.processor()
    processor.tokenizer.chat_template = "{{ 'not what was taught' }}"
    processor.tokenizer.save_pretrained("words")
    (tmp_path / "words" / "config.json").write_text("{}")
    shared = {"lr": 1e-3, "batch": 8, "steps": 2, "objective": [{"loss": "cross_entropy"}]}
    recipe = {
        "title": "the paper's data",
        "student": {
            "family": "llava",
            "vision": {"fresh": tiny.VISION},
            "language": {"fresh": LANGUAGE},
            "tokenizer": "./words",
        },
        "data": DATA,
        "stages": [
            {"name": "pretrain", "data": "captions", "train": ["projector"], **shared},
            {
                "name": "distill",
                "data": "instructions",
                "train": ["projector", "language"],
                **shared,
                "group_by": "modality_length",
                "micro_batch": 4,
            },
        ],
    }
    (tmp_path / "paper.yaml").write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return tmp_path


def switchkd(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["switchkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_both_files_train_a_model_and_the_lost_picture_is_reported(place, monkeypatch, capsys):
    assert not switchkd(monkeypatch, "distill", "paper.yaml")
    (run,) = (place / "runs" / "paper").glob("*/seed0")
    (line,) = map(json.loads, (run / "skipped.jsonl").read_text().splitlines())
    assert line == {
        "data": "finetune/llava_v1_5_mix665k.json",
        "row": 8,
        "id": "000000000008",
        "fault": "no such image: finetune/gqa/images/000000000008.jpg",
    }
    assert "skipped: data instructions, rows 1, of 120, listed skipped.jsonl" in capsys.readouterr().err
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "Rows that could not be used: 1," in card and "This run measured no scores." in card
    again = AutoProcessor.from_pretrained(run / "model", backend="pil")
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    asked = again.apply_chat_template(question, add_generation_prompt=True)
    assert asked.endswith("USER: <image>\nWhat is it? ASSISTANT:")


def test_a_second_run_takes_over_the_stage_that_was_taught_with_bare_captions(place, monkeypatch, capsys):
    assert not switchkd(monkeypatch, "distill", "paper.yaml")
    (place / "again.yaml").write_text((place / "paper.yaml").read_text())
    assert not switchkd(monkeypatch, "distill", "again.yaml", "stages.distill.lr=2e-3")
    assert "reused pretrain" in capsys.readouterr().err


def test_a_student_whose_words_the_data_s_templates_write_is_planned(place, monkeypatch, capsys):
    assert switchkd(monkeypatch, "distill", "paper.yaml", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "parameters" in out and "unknown" not in out


def test_a_model_that_only_writes_captions_is_not_asked(place, monkeypatch, capsys):
    assert not switchkd(monkeypatch, "distill", "paper.yaml", "stages.distill.data=captions")
    (model,) = (place / "runs" / "paper").glob("*/seed0/model")
    capsys.readouterr()
    assert switchkd(monkeypatch, "eval", "--model", str(model), "--benchmarks", "mme", "--items", "4") == 2
    assert capsys.readouterr().err.startswith("model: the chat template leaves questions out")


def test_without_a_template_of_the_data_the_model_s_own_must_show_pictures(place, monkeypatch, capsys):
    assert switchkd(monkeypatch, "distill", "paper.yaml", "data.instructions.template=null") == 2
    assert capsys.readouterr().err.startswith("student: the chat template writes no <image>")


def test_a_folder_that_was_not_fetched_ends_the_run_before_training(place, monkeypatch, capsys):
    (place / "finetune" / "textvqa" / "train_images").rename(place / "elsewhere")
    assert switchkd(monkeypatch, "distill", "paper.yaml") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("no such image: finetune/textvqa/train_images/000000000003.jpg")
    assert lines[-2] == "... and 13 more of 120 rows"
    assert lines[-1].startswith("hint: mend or remove these rows: 15.0% of the rows can't be used;")
    assert not (place / "runs" / "paper").exists()


def test_the_rows_are_what_the_templates_say(place):
    model = tiny.model()
    inputs = SquareInputs(tiny_qwen.processor(), model.inputs.usual.text.count("<image>"))
    inputs.config = model.model.config
    student = VisionLanguageModel(model.model, inputs)
    for name, expected in (
        ("captions", "<image> <image> <image> <image> [a] [Ġdog] [Ċ]"),
        ("instructions", "Ġquestions . ĠUSER : Ġ <image> <image> <image> <image> Ċ How Ġmany Ġdogs ?"),
    ):
        data = open_data(DataSet.model_validate(DATA[name]), student.inputs, place / "runs")
        data.inspect()
        words = student.inputs.processor.tokenizer.convert_ids_to_tokens(data[0].input_ids)
        told = " ".join(w if label == IGNORE else f"[{w}]" for w, label in zip(words, data[0].labels, strict=True))
        assert told == expected if name == "captions" else expected in told
        assert len(data) == 120 and data.rows.survey.sizes.shape == (120,)
    assert data.rows.survey.image_mask.sum() == 120 - 17
