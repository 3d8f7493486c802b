"""A look at the data before training: counts that a person would otherwise find out after it."""

import pytest
from PIL import Image

from switchkd_cli.engine.data import open_file
from switchkd_cli.engine.data.look import look
from switchkd_cli.engine.data.open_file import llava_json
from switchkd_cli.planning.estimate import planned_machine
from switchkd_cli.recipe.load import load
from switchkd_cli.scheduler import launch
from tests.data.test_data_files import saved
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
    "6 rows, 1 text only (17%); characters: 9 in the median, 206 in 99 %, 212 at most",
    "unusable: <image> placeholders 2 (33%)",
    "copies of another row, text and image: 1 of 4 rows that were compared",
    "answers: 5, the most frequent: yes 3 (60%), no 1 (20%)",
    "images: 30 x 10 to 24 x 24 pixels, RGB 2 (67%), L 1 (33%) of a sample of 3",
]


def test_the_look_at_a_file(tmp_path):
    rows = llava_json(tmp_path, file=str(saved(tmp_path / "rows.json", raw(tmp_path))), images=str(tmp_path))
    assert list(look(rows, range(6))) == LOOK
    assert list(look(rows, ())) == LOOK[:4]
    (tmp_path / "a.png").unlink()
    assert "L 1 (100%) of a sample of 1" in list(look(rows, range(6)))[-1]


def test_the_look_is_the_same_from_several_files_and_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(open_file, "CACHED_ROWS", 1)
    rows = raw(tmp_path)
    files = [str(saved(tmp_path / "a.json", rows[:2])), str(saved(tmp_path / "b.jsonl", rows[2:]))]
    for _ in range(2):
        found = llava_json(tmp_path, file=files, images=str(tmp_path))
        assert list(look(found, ())) == LOOK[:4]
        monkeypatch.setattr(open_file, "_read", pytest.fail)


def test_rows_with_their_images_in_the_file_are_not_called_copies(tmp_path):
    rows = [
        tiny.row("1", "a.png", ("Is it?", "yes")) | {"image": {"bytes": content, "path": None}}
        for content in (b"1", b"2")
    ]
    found = llava_json(tmp_path, file=str(saved(tmp_path / "rows.parquet", rows)))
    assert not [line for line in look(found, ()) if line.startswith("copies")]


def test_a_plan_shows_it(tmp_path, capsys):
    recipe = tiny_run.write(tmp_path, teacher=False, rows=raw(tmp_path)[:4])
    plan = launch.estimate(load(recipe), planned_machine(None, "fp32"), tmp_path / "runs", {})
    assert plan.stages[0].data.look[0].startswith("4 rows, 1 text only (25%)")
    assert any(line.startswith("copies of another row") for line in plan.stages[0].data.look)
