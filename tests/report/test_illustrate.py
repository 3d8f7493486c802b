"""Data for figures that needs a model, with tiny models on examples made on the spot."""

import sys

import numpy as np
import pytest
import torch

from switchkd_cli import cli
from switchkd_cli.engine import figure_data
from switchkd_cli.runs import run_folder
from tests.support import tiny, tiny_run


@pytest.fixture
def model():
    return tiny.model(seed=1)


def batch(model, folder):
    return tiny.batch(model, folder, which=[tiny.row("a", tiny.picture(folder, "a.png", 1), ("What is it?", "dog"))])


def test_attention_is_the_mean_over_layers_and_heads_of_transformers_own_forward_pass(model, tmp_path):
    asked = batch(model, tmp_path)
    with torch.inference_mode():
        place = figure_data._last_word(asked, model)
        word, found = figure_data._attention_map(model, asked)
        model.model.set_attn_implementation("eager")
        output = model.model(
            input_ids=asked.input_ids,
            pixel_values=tiny.pixels(asked),
            attention_mask=asked.attention.long(),
            output_attentions=True,
        )
    expected = torch.stack(output.attentions).mean((0, 2))[0][place, asked.image[0]]
    torch.testing.assert_close(torch.from_numpy(found.weights), expected.reshape(2, 2))
    chosen = output.logits[asked.predicting("answer")].argmax(-1)
    assert word == model.inputs.processor.tokenizer.decode([asked.input_ids[0, place]]).strip()
    assert found.answer == model.inputs.processor.tokenizer.decode(chosen, skip_special_tokens=True).strip()


def test_it_is_looked_from_the_last_word_of_the_question(model, tmp_path):
    asked = batch(model, tmp_path)
    place = figure_data._last_word(asked, model)
    assert model.inputs.processor.tokenizer.decode(asked.input_ids[0, : place + 1]).endswith("is it")


def test_a_square_of_patches_has_holes_where_the_tower_drops_its_first():
    grid = figure_data._grid(torch.arange(1, 9, dtype=torch.float32))
    assert np.isnan(grid[0, 0]) and np.nanmax(grid) == grid[2, 2] == 8 and grid.shape == (3, 3)


def test_knees_are_those_of_the_paths_that_a_saved_student_has(tmp_path, monkeypatch):
    """A term to the student as it was before the stage has one too, and that student is gone."""
    terms = [{"name": "keep", "loss": "dbild", "to": "before"}, {"name": "align", "loss": "dbild", "to": "teacher"}]
    stage = {"steps": 1, "batch": 2, "micro_batch": 2, "objective": [tiny_run.CE, *terms]}
    file = tiny_run.write(tmp_path, distill=stage)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["switchkd", "distill", str(file)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    (done,) = run_folder.finished(tmp_path / "runs")
    found = figure_data.knee_position(done)
    assert [curve.path for curve in found.paths] == ["teacher", "student"]
