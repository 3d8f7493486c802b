"""A data set of several files: one order of rows, every problem at once, and every file in a run's key."""

import pickle

import pytest

from switchkd_cli.engine.data import sources
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.named_files import data_files
from tests.data.test_data_files import saved
from tests.support import tiny, tiny_run

NAMES = ("b.jsonl", "a.json", "c.parquet")


def text_row(name, **more):
    return tiny.row(name, None, ("What?", name)) | more


@pytest.fixture
def files(tmp_path):
    """Three files of two rows each, the second one without an id."""
    return [str(saved(tmp_path / name, [text_row(name, k=1), text_row(f"{name} too", id=None)])) for name in NAMES]


def answers(rows):
    return [rows[i].exchanges[0][1] for i in range(len(rows))]


def test_rows_come_file_after_file(tmp_path, files):
    rows = llava_json(tmp_path, file=files)
    assert answers(rows) == [text for name in NAMES for text in (name, f"{name} too")]
    assert [rows[i].id for i in (0, 1, 5)] == ["b.jsonl", f"{files[0]} row 1", f"{files[2]} row 1"]
    assert len(rows) == len(rows.survey.sizes) == 6 and rows.survey.sizes.tolist() == [rows[i].size for i in range(6)]
    assert list(rows.survey.note_lines()) == ["keys that are not read: k (3 rows)"]
    assert answers(pickle.loads(pickle.dumps(rows))) == answers(rows)


def test_a_pattern_is_sorted(tmp_path, files):
    assert answers(llava_json(tmp_path, file=f"{tmp_path}/*.json*"))[::2] == ["a.json", "b.jsonl"]
    assert answers(llava_json(tmp_path, file=[files[2], f"{tmp_path}/?.json"]))[::2] == ["c.parquet", "a.json"]
    assert answers(llava_json(tmp_path, file=[files[1], f"{tmp_path}/a.*"]))[::2] == ["a.json"]  # each file once
    odd = saved(tmp_path / "x[1].json", [text_row("odd")])
    assert answers(llava_json(tmp_path, file=str(odd))) == ["odd"]  # a name that is also a pattern
    assert data_files(3) == data_files(None) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 6])
def test_a_limit_takes_the_first_rows_of_all(tmp_path, files, limit):
    assert answers(llava_json(tmp_path, file=files, limit=limit)) == answers(llava_json(tmp_path, file=files))[:limit]


def test_large_files_are_read_through_once(tmp_path, files, monkeypatch):
    monkeypatch.setattr(sources, "CACHED_ROWS", 2)
    first = llava_json(tmp_path, file=files)
    monkeypatch.setattr(sources, "_read", None)
    assert answers(llava_json(tmp_path, file=files)) == answers(first)


def test_a_faulty_row_is_called_by_its_file(tmp_path, files):
    files.append(str(saved(tmp_path / "d.json", [text_row("d"), {"conversations": []}])))
    (fault,) = llava_json(tmp_path, file=files).survey.faults
    assert str(fault) == f"row 7: {files[3]} row 1: no `conversations` list"


def test_every_problem_is_named_at_once(tmp_path, files):
    (tmp_path / "notes.txt").write_text("hi")
    with pytest.raises(UserError) as refused:
        llava_json(tmp_path, file=[*files, f"{tmp_path}/n*", f"{tmp_path}/z*.json", "none.json"])
    assert refused.value.problems == (
        f"{tmp_path}/z*.json: no such data file",
        "none.json: no such data file",
        f"{tmp_path}/notes.txt: a data file's name ends in .json, .jsonl, .parquet, .tar, got '.txt'",
    )
    with pytest.raises(UserError, match="names no data file"):
        llava_json(tmp_path, file=[])


def test_every_file_is_part_of_the_key(tmp_path, files):
    data = {"rows": {"source": "llava_json", "parameters": {"file": f"{tmp_path}/?.json*", "images": str(tmp_path)}}}
    recipe = tiny_run.write(tmp_path, teacher=False, data=data)
    before = load(recipe)
    assert before.inputs["data.rows.file"] and load(recipe).key == before.key
    saved(tmp_path / "a.json", [text_row("other")])
    changed = load(recipe)
    assert changed.key != before.key and changed.stage_key(0) != before.stage_key(0)
    saved(tmp_path / "z.jsonl", [text_row("new")])
    assert before.changed() == ["data.rows.file"] and load(recipe).key != changed.key
