"""The commands as Python functions: the same runs, as pandas frames."""

import json
from pathlib import Path

import pytest

from switchkd_cli import api
from switchkd_cli.errors import UserError
from tests.support import made_up_report as made
from tests.support import tiny_run

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def runs(tmp_path):
    file = made.recipe(tmp_path)
    made.finished(tmp_path / "runs", file, seeds=(0, 1), rows=["switch-kd", "sft"])
    return file, tmp_path / "runs"


def test_scores_are_a_line_a_run(runs):
    file, root = runs
    found = api.scores(file, out=root)
    assert list(found.index) == [("Switch-KD", 0), ("Switch-KD", 1), ("SFT", 0), ("SFT", 1)]
    for (_, seed), line in found.loc[["SFT"]].iterrows():
        stored = made.stored(root, "sft")[seed]
        assert list(line[["GQA", "MMMU", "POPE"]]) == pytest.approx(list(stored))
        assert line["Avg"] == pytest.approx(stored.mean())
    one = api.scores(root / "components" / "sft" / "seed1", out=root)
    assert list(one.index) == [("SFT", 1)] and one["folder"].item().endswith("components/sft/seed1")


def test_a_comparison_has_the_numbers_behind_the_printed_cells(runs):
    file, root = runs
    found = api.compare(file, against="sft", out=root)
    gain = (made.stored(root, "switch-kd") - made.stored(root, "sft")).mean(0)[0]
    cells = found[found["line"].eq("GQA") & found["column"].eq("difference")]
    assert cells["value"].item() == pytest.approx(gain)
    assert set(found.columns) >= {"table", "line", "column", "text", "value", "low", "high"}


def test_what_a_command_would_print_is_raised(tmp_path):
    with pytest.raises(UserError, match="no finished run with scores"):
        api.scores(out=tmp_path)
    with pytest.raises(UserError, match=r"(?s)stages\.distill\.lrr.*lr"):
        api.distill(tiny_run.write(tmp_path), "stages.distill.lrr=1", out=tmp_path / "runs")


def test_training_returns_where_the_model_is_and_examples_are_shown(tmp_path):
    recipe = tiny_run.write(tmp_path, distill={"steps": 1})
    model = api.pretrain(recipe, "stages.pretrain.steps=1", out=tmp_path / "runs")
    assert (model / "model.safetensors").is_file()
    found = api.examples(recipe, data="rows", count=2)
    assert [len(example.images) for example in found] == [1, 0]
    assert found[0].exchanges[0] == ("What is it?", "dog")
    page = found._repr_html_()
    assert page.count("data:image/png;base64,") == 1 and "<b>dog</b>" in page
    with pytest.raises(UserError, match=r"got 'row' \(did you mean 'rows'\?\)"):
        api.examples(recipe, data="row")


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found: dict = {}
    for cell in code:
        exec(cell, found)  # noqa: S102 (our own file)
    assert list(found["scores"]["GQA"]) and len(found["answers"]) == 4
    assert set(found["steps"]["stage"]) == {"pretrain", "distill"}
    assert "did you mean 'gqa'?" in capsys.readouterr().out
