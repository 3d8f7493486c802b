"""The model card: what made the model, and no number that its run did not measure."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from switchkd_cli.engine.export import model_card
from switchkd_cli.files.atomic import write_json
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.run import fingerprint
from switchkd_cli.runs import run_folder

RECIPE = """
title: A table
seed: 3
student:
  family: llava
  vision: google/siglip-so400m-patch14-384
  language: ./words
  projector: {projector}
  feature_select: {select}
teacher: {{family: llava, checkpoint: Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP}}
data:
  mix: {{source: llava_json, parameters: {{file: mix.json, images: pictures}}}}
stages:
  - name: distill
    data: mix
    train: [vision, projector, language]
    lr: 2.0e-5
    batch: 128
    epochs: 1.0
    objective:
      - {{loss: cross_entropy}}
      - {{name: vsd, loss: dbild, of: switch, to: teacher, weight: 0.5}}
rows:
  switch-kd: {{title: Switch-KD}}
  sft: {{title: SFT, drop: [vsd]}}
"""
SCORES = {
    "gqa": {"score": 58.34, "metric": "exact_match", "value": 0.5834, "items": 200, "seconds": 1.0},
    "pope": {"score": 81.0, "metric": "pope_f1_score", "value": 0.81, "items": 200, "seconds": 1.0},
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A run's folder as it stands before scoring, and its card once `results` are there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "config.json").write_text("{}")
    (tmp_path / "words" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Words\n")

    def write(row="switch-kd", world=None, projector="mlp2x_gelu", changes=(), scores=SCORES) -> tuple[ModelCard, str]:
        select = "full" if projector == "ldpnetv2" else "default"
        text = RECIPE.format(projector=projector, select=select)
        for old, new in changes:
            text = text.replace(old, new, 1)
        Path("table.yaml").write_text(text)
        run = load(Path("table.yaml"), row)
        folder = run_folder.folder(tmp_path / "runs", run)
        folder.model.mkdir(parents=True, exist_ok=True)
        kind = "llava" if projector == "mlp2x_gelu" else "llava_ldpnetv2"
        write_json(folder.model / "config.json", {"model_type": kind, "image_seq_length": 728})
        command = ["switchkd", "distill", "table.yaml", "--out", "a b"]
        record = {"command": command, "commit": "abc123", "versions": {"torch": "2.13.0"}}
        write_json(folder.record, record)
        if world:
            results = {"world": world, "split": "test", "seed": 0, "versions": {"lmms-eval": "0.7.3"}}
            write_json(folder.results, results | {"scores": scores})
        model_card.write(run, folder)
        file = folder.model / "README.md"
        return ModelCard.load(file), file.read_text(encoding="utf-8")

    return write


def test_the_front_matter_is_what_the_hub_reads(written):
    front, _ = written()
    told = front.data.to_dict()
    assert told["library_name"] == "transformers"
    assert told["pipeline_tag"] == "image-text-to-text"
    assert told["base_model"] == ["google/siglip-so400m-patch14-384"]  # a local folder is none of the hub's
    assert told["license"] == "other" and told["license_name"] == "see-the-base-models"
    assert {"knowledge-distillation", "llava", "switchkd"} <= set(told["tags"])
    assert "model-index" not in told


def test_it_says_what_made_the_model(written):
    _, text = written()
    assert "switchkd distill table.yaml --out 'a b'" in text
    assert "distilled from `Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP`" in text
    assert "| distill | mix | vision, projector, language | 1.0 epochs of 128 | 2e-05 |" in text
    assert "1.0 cross_entropy(labels, student) + 0.5 dbild(teacher, switch) |" in text
    assert "commit abc123" in text and "torch 2.13.0" in text
    assert "`mix`: llava_json, file mix.json, images pictures" in text
    assert "seed 3" in text and "728 tokens an image" in text


def test_the_recipe_in_it_is_the_run(written):
    _, text = written()
    recipe = text[text.index("```yaml") + 8 :].partition("```")[0]
    Path("again.yaml").write_text(recipe)
    again, before = load(Path("again.yaml")), load(Path("table.yaml"), "switch-kd")
    assert again.config == before.config.model_copy(update={"rows": again.config.rows, "controls": ()})
    assert yaml.safe_load(recipe)["seed"] == 3


def test_licences_are_the_base_models_own(written):
    _, text = written()
    assert "| language | ./words | apache-2.0 (by its own card) |" in text
    assert "| teacher | Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP | not stated where it was read from" in text
    assert "| data | mix | not known to switchkd" in text
    assert model_card.licence("playground:teacher").startswith("shipped with switchkd")


def test_a_card_that_is_not_sound_yields_no_licence(written):
    Path("words/README.md").write_text("---\nlicense: [\n---\n")
    assert "| language | ./words | not stated" in written()[1]


def test_a_model_without_a_teacher_is_not_called_distilled(written):
    front, text = written(row="sft")
    assert "without a teacher" in text and "distilled from" not in text
    assert "knowledge-distillation" not in front.data.tags
    assert "| teacher |" not in text


def test_without_an_evaluation_there_is_no_number(written):
    _, text = written()
    assert "This run measured no scores." in text and "| score" not in text


def test_playground_scores_are_named_so_wherever_they_stand(written):
    front, text = written(world="playground")
    assert "Measured in switchkd's playground, not on the benchmarks." in text
    assert "| GQA | 58.3 | gqa, exact_match | 200 |" in text
    assert "playground" in front.data.tags
    assert [(r.dataset_type, r.metric_value) for r in front.data.eval_results] == [
        ("switchkd-playground", 58.34),
        ("switchkd-playground", 81.0),
    ]
    assert all("playground" in r.dataset_name for r in front.data.eval_results)


def test_published_scores_say_how_many_items_were_asked(written):
    front, text = written(world="hub")
    assert "playground" not in text.replace("switchkd-playground", "") and "playground" not in front.data.tags
    assert "| POPE | 81.0 | pope, pope_f1_score | 200 |" in text
    first = front.data.eval_results[0]
    assert (first.dataset_type, first.dataset_split, first.dataset_args) == ("gqa", "testdev", {"items": 200})


def test_answers_that_are_none_stand_below_the_scores(written, monkeypatch):
    monkeypatch.setitem(SCORES, "pope", SCORES["pope"] | {"score": 0.0, "unreadable": 200, "example": "*Yes.*"})
    for world in ("hub", "playground"):
        _, text = written(world=world)
        told = text.partition("## Scores")[2].partition("## How it was made")[0]
        assert "\n\nwarning: POPE: answers that can't be read by the metric: this model 200 of 200" in told
        assert r"'\*Yes.\*'" in told


def test_accuracy_has_a_line_of_its_own_and_one_word_is_named(written, monkeypatch):
    monkeypatch.setitem(SCORES, "pope", SCORES["pope"] | {"accuracy": 54.5, "yes": 198, "no": 2})
    for world in ("hub", "playground"):
        front, text = written(world=world)
        assert "| POPE | 81.0 | pope, pope_f1_score | 200 |\n| POPE | 54.5 | pope, accuracy | 200 |" in text
        assert 'POPE: "yes" is 95 % or more of the readable answers: this model 198 of 200' in text
        assert [(r.metric_type, r.metric_value) for r in front.data.eval_results][1:] == [
            ("pope_f1_score", 81.0),
            ("accuracy", 54.5),
        ]


def test_a_card_of_ldpnetv2_says_what_can_and_cannot_load_it(written):
    front, text = written(projector="ldpnetv2")
    assert front.data.library_name == "switchkd-cli"
    assert "can't\nload this model" in text and "import switchkd_cli.engine.models.ldpnet" in text


def test_a_card_does_not_change_what_a_model_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    before = fingerprint(str(tmp_path))
    (tmp_path / "README.md").write_text("# A card")
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "config.json").write_text(json.dumps({"a": 2}))
    assert fingerprint(str(tmp_path)) != before


def test_scores_of_own_rows_are_neither_the_playground_s_nor_a_benchmark_s(written):
    own = {"score": 50.0, "metric": "exact", "items": 4, "split": "own", "higher_is_better": True}
    bits = {"score": 6.2, "metric": "exposure", "items": 4, "split": "own", "higher_is_better": False}
    front, text = written(world="playground", scores={**SCORES, "rows.exact": own, "rows.exposure": bits})
    told = {each.dataset_config: each for each in front.data.eval_results}
    assert {name: each.dataset_type for name, each in told.items()} == {
        "gqa": "switchkd-playground",
        "pope": "switchkd-playground",
        "rows.exact": "own-rows",
        "rows.exposure": "own-rows",
    }
    assert (told["rows.exact"].dataset_split, told["gqa"].dataset_split) == ("own", "test")
    assert "lower is better" in told["rows.exposure"].metric_name
    assert "| rows.exposure | 6.2000 (its own scale), lower is better | exposure | 4 |" in text


def test_a_stock_task_has_its_own_split_and_direction(written):
    wer = {"score": 0.31, "metric": "wer", "items": 9, "split": "val", "higher_is_better": False}
    front, text = written(world="hub", scores={"speech_wer": wer})
    (told,) = front.data.eval_results
    assert (told.dataset_split, told.dataset_type) == ("val", "speech_wer")
    assert "| speech_wer | 0.3100 (lmms-eval's own), lower is better | speech_wer, wer | 9 |" in text


def test_every_teacher_is_named(written):
    teachers = ("data:", "teachers: {other: {family: llava, checkpoint: org/other}}\ndata:")
    front, text = written(changes=[teachers, ("of: switch, to: teacher", "of: switch, to: other")])
    assert "It was distilled from `Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP` and `org/other`" in text
    assert "| teacher other | org/other |" in text
    assert front.data.to_dict()["base_model"] == ["google/siglip-so400m-patch14-384"]
