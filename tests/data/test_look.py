"""A look at the data before training: counts that a person would otherwise find out after it."""

import numpy as np
import yaml
from PIL import Image

from switchkd_cli.commands.dry_run import _show_run
from switchkd_cli.engine.cost import run_estimate
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.engine.data import look as look_module
from switchkd_cli.engine.data import sources
from switchkd_cli.engine.data.look import EvaluationSet, lengths, look, looks
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.planning.estimate import planned_machine
from switchkd_cli.recipe.load import load
from tests.data.test_data_files import saved
from tests.data.test_turns import told_by_the_program
from tests.support import tiny, tiny_run


def raw(folder):
    """Six rows: two that are equal, one with another image only, two faulty ones of one kind."""
    Image.new("L", (30, 10)).save(folder / "grey.png")
    named = tiny.picture(folder, "a.png", 1)
    asked = [tiny.row("1", named, ("Is it?", "yes")), tiny.row("2", named, ("Is it?", "yes"))]
    asked += [
        tiny.row("3", "grey.png", ("Is it?", "yes")),
        tiny.row("4", None, ("Which?", "no"), ("Why?", 40 * "long ")),
    ]
    return asked + [tiny.row("5", None, ("<image>", "yes")), tiny.row("6", None, ("<image> <image>", "no"))]


LOOK = [
    "6 rows, 1 text only (17%)",
    f"up to        16 characters         3 {'#' * 40}",
    "up to        64 characters         0",
    f"up to       256 characters         1 {'#' * 13}",
    "unusable: <image> placeholders 2 (33%)",
    "copies of another row, text and image: 1 of 4 rows that were compared",
    "answers: 5, the most frequent: yes 3 (60%), no 1 (20%)",
    "images: 30 x 10 to 24 x 24 pixels, RGB 2 (67%), L 1 (33%)",
]


def test_the_look_at_a_file(tmp_path):
    rows = llava_json(tmp_path, file=str(saved(tmp_path / "rows.json", raw(tmp_path))), images=str(tmp_path))
    assert list(look(rows, {})) == LOOK
    (tmp_path / "a.png").unlink()
    assert list(look(rows, {}))[-1] == "images: 30 x 10 to 30 x 10 pixels, L 1 (100%)"


def test_lengths_are_counted_up_to_each_power_and_without_unusable_rows():
    assert lengths(np.array([1, 3, 4, 5, 0, 64, 0])) == {1: 1, 2: 0, 4: 2, 8: 1, 16: 0, 32: 0, 64: 1}
    assert lengths(np.array([16, 17, 64, 65]), 4) == {16: 1, 64: 2, 256: 1}
    assert lengths(np.array([0, 0])) == {}


def test_of_a_large_set_a_sample_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(look_module, "SAMPLE", 1)
    rows = llava_json(tmp_path, file=str(saved(tmp_path / "rows.json", raw(tmp_path)[:3])), images=str(tmp_path))
    lines = list(look(rows, {"b": EvaluationSet([])}))
    assert "answers of a sample of 1 rows: 1, the most frequent: yes 1 (100%)" in lines
    assert lines[-1].startswith("rows of a sample of 1 rows that also stand in b")


def test_images_of_an_evaluation_set_are_read_only_where_a_row_asks_the_same_and_not_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(look_module, "READ", 2)
    rows = llava_json(tmp_path, file=str(saved(tmp_path / "rows.json", raw(tmp_path)[:3])), images=str(tmp_path))
    image, read = Image.open(tmp_path / "a.png"), []

    def question(text, *, broken=False):
        return text, lambda: read.append(text) or [image.crop((0, 0, 9, 9)) if broken else image]

    asked = EvaluationSet([question("Why?"), question("Is it? "), question("Is it?"), question("Is it?", broken=True)])
    line = "rows that also stand in b, picture and question: 2 (1 questions with such texts were not read)"
    assert list(look(rows, {"b": asked}))[-1] == line
    assert read == ["Is it? ", "Is it?"]


def test_a_question_whose_image_cannot_be_read_is_counted(tmp_path):
    rows = llava_json(tmp_path, file=str(saved(tmp_path / "rows.json", raw(tmp_path)[:3])), images=str(tmp_path))
    asked = EvaluationSet([("Is it?", lambda: [Image.open(tmp_path / "gone.png")])])
    assert list(look(rows, {"b": asked}))[-1].endswith("question: 0 (1 questions with such texts were not read)")


def test_the_look_is_the_same_from_several_files_and_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHED_ROWS", 1)
    rows = raw(tmp_path)
    files = [str(saved(tmp_path / "a.json", rows[:2])), str(saved(tmp_path / "b.jsonl", rows[2:]))]
    for _ in range(2):
        found = llava_json(tmp_path, file=files, images=str(tmp_path))
        assert list(look(found, {})) == LOOK
        monkeypatch.setattr(sources, "_read", None)


def test_rows_with_their_images_in_the_file_are_not_called_copies(tmp_path):
    rows = [
        tiny.row("1", "a.png", ("Is it?", "yes")) | {"image": {"bytes": content, "path": None}}
        for content in (b"1", b"2")
    ]
    found = llava_json(tmp_path, file=str(saved(tmp_path / "rows.parquet", rows)))
    assert not [line for line in look(found, {}) if line.startswith("copies")]


def test_a_plan_shows_it(tmp_path, capsys):
    recipe = tiny_run.write(tmp_path, teacher=False, rows=raw(tmp_path)[:4])
    plan = estimate_run(load(recipe), planned_machine(None, "fp32"), tmp_path / "runs", {})
    assert plan.looks["rows"][0] == "4 rows, 1 text only (25%)"
    assert any(line.startswith("copies of another row") for line in plan.looks["rows"])
    _show_run(plan)
    assert "a look at rows\n  4 rows, 1 text only (25%)\n" in capsys.readouterr().out


def saved_set(folder, name, asked, form="png"):
    """A data set of text rows and of rows about a picture, each a question and the picture's seed."""
    folder.mkdir()
    pictures = {seed: tiny.picture(folder, f"{name}{seed}.{form}", seed) for _, seed in asked if seed}
    rows = [tiny.row(f"{name}{i}", pictures.get(seed), (q, "yes")) for i, (q, seed) in enumerate(asked)]
    return {"file": str(saved(folder / "rows.json", rows)), "images": str(folder)}


def test_rows_of_an_evaluation_set_are_counted_by_picture_and_question(tmp_path):
    train = saved_set(
        tmp_path / "train", "t", [("Is it?", 1), ("Is it?", 2), ("Why?", 1), ("Hi?", None), ("Ho?", None)]
    )
    held_out = saved_set(tmp_path / "val", "v", [("Is it?", 1), ("Why?", 2), ("Hi?", None)])
    scored = saved_set(tmp_path / "own", "o", [("Is it?", 2), ("Why?", 1), ("Hi?", None)], "bmp")
    sets = {
        name: {"source": "llava_json", "parameters": where} for name, where in (("rows", train), ("held_out", held_out))
    }
    checked = {"validation": {"data": "held_out", "every_steps": 1}}
    own = {"source": "llava_json", "parameters": scored}
    exam = {"world": "rows", "data": own, "benchmarks": ["rows.exact"]}
    run = load(tiny_run.write(tmp_path, teacher=False, data=sets, distill=checked, evaluation=exam))
    plan = estimate_run(run, planned_machine(None, "fp32"), tmp_path / "runs", {})
    line = "rows that also stand in {}, picture and question: {}"
    also = [found for found in plan.looks["rows"] if "also stand" in found]
    assert also == [line.format("held_out", 2), line.format("evaluation.data", 3)]
    assert [found for found in plan.looks["held_out"] if "also" in found] == [line.format("evaluation.data", 1)]


def test_rows_of_a_recipe_that_share_their_data_are_looked_at_once(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(run_estimate, "looks", lambda *of: calls.append(of) or looks(*of))
    sets = {
        name: {"source": "llava_json", "parameters": saved_set(tmp_path / name, name, [("Is it?", 1), ("Why?", 2)])}
        for name in ("rows", "other")
    }
    file = tiny_run.write(tmp_path, teacher=False, data=sets)
    recipe = yaml.safe_load(file.read_text())
    recipe["rows"] = {"a": {"title": "A"}, "b": {"title": "B", "set": {"stages.distill.lr": 2e-3}}}
    recipe["rows"]["c"] = {"title": "C", "set": {"stages.distill.data": "other"}}
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    code, out, _ = told_by_the_program(monkeypatch, capsys, "ablate", file, "--dry-run", "--out", tmp_path / "runs")
    assert code == 0 and out.count("row b: B") == 1
    assert len(calls) == 2 and (out.count("a look at rows"), out.count("a look at other")) == (2, 1)
