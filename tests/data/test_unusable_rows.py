"""Rows that can't be used: stood in for, counted, listed, and too many of them end the run."""

import json
from pathlib import Path

import pytest
import torch

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.engine.data import conversation
from switchkd_cli.engine.data.conversation import Conversations, NoStandIn, stand_ins
from switchkd_cli.engine.data.rows import BadRows, Rows
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.loop import train
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny


@pytest.fixture(scope="module")
def student():
    return tiny.model()


def rows(folder, count):
    """Pictured rows, one a picture."""
    return [tiny.row(f"r{i}", tiny.picture(folder, f"{i}.png", i), ("What?", "dog")) for i in range(count)]


def data(student, folder, raw, **more):
    read = Rows(raw, llava_row, images=folder, name="rows.json")
    return Conversations(read, student.inputs, **more)


def stage(**changes):
    settings = {"name": "tune", "data": "rows", "train": ["language"], "lr": 1e-3, "batch": 4, "steps": 3}
    return Stage.model_validate(settings | {"objective": [{"loss": "cross_entropy"}]} | changes)


def trained(student, of, folder, **changes):
    paths = Paths(student, None, len(student.inputs.processor.tokenizer))
    train(stage(**changes), paths, of, seed=0, precision="fp32", log=lambda _: None)


def same(one, other):
    pixels, others = ([image["pixel_values"] for image in example.images] for example in (one, other))
    return (
        all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("input_ids", "labels"))
        and len(pixels) == len(others) == 1
        and torch.equal(pixels[0], others[0])
    )


# --- one rule: a share of the rows


@pytest.mark.parametrize(("count", "faulty", "allowed"), [(100, 1, 0.01), (4, 1, 0.25), (4, 0, 0.0)])
def test_faults_up_to_the_share_are_let_through(student, tmp_path, count, faulty, allowed):
    raw = rows(tmp_path, count)
    for row in raw[:faulty]:
        (tmp_path / row["image"]).unlink()
    sound = data(student, tmp_path, raw, max_faults=allowed)
    sound.inspect()
    assert sorted(sound.bad_rows.unusable) == list(range(faulty))


@pytest.mark.parametrize(("count", "faulty", "allowed"), [(99, 1, 0.01), (4, 2, 0.25), (4, 1, 0.0)])
def test_faults_past_the_share_end_the_run_before_training(student, tmp_path, count, faulty, allowed):
    raw = rows(tmp_path, count)
    for row in raw[:faulty]:
        (tmp_path / row["image"]).unlink()
    with pytest.raises(UserError) as stopped:
        data(student, tmp_path, raw, max_faults=allowed).inspect()
    assert stopped.value.code == 2
    assert stopped.value.problems == tuple(
        f"rows.json: row {i}: r{i}: no such image: {tmp_path}/{i}.png" for i in range(faulty)
    )
    assert stopped.value.hint == (
        f"mend or remove these rows: {faulty / count:.1%} of the rows can't be used; nothing was trained"
        f" (max_faults: {allowed:.1%})"
    )


def test_one_path_that_leaves_its_folder_ends_the_run_whatever_the_share(student, tmp_path):
    raw = [*rows(tmp_path, 3), tiny.row("out", "../a.png", ("What?", "dog"))]
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError) as stopped:
        data(student, tmp_path, raw, max_faults=0.9).inspect()
    assert stopped.value.problems == ("rows.json: row 3: out: image path leaves its folder: ../a.png",)


def test_of_a_large_set_a_sample_is_looked_at_and_all_texts(student, tmp_path, monkeypatch):
    """40 rows, 10 looked at: the pictures' share is that of the 10, the texts' that of all."""
    monkeypatch.setattr(conversation, "SAMPLE_ROWS", 10)
    raw = rows(tmp_path, 40)
    for row in raw[1::2]:
        (tmp_path / row["image"]).unlink()
    raw[0]["conversations"].pop()
    some = data(student, tmp_path, raw, max_faults=0.9)
    some.inspect()
    looked_at = {i for i in some._cache} | {i for i in some.bad_rows.unusable}
    pictures = len(some.bad_rows.unusable) - 1
    assert 0 in some.bad_rows.unusable and 10 <= len(looked_at) <= 11 and 0 < pictures < 10
    with pytest.raises(UserError) as stopped:
        data(student, tmp_path, raw, max_faults=1 / 40 + (pictures - 0.5) / 10).inspect()
    assert f"{1 / 40 + pictures / 10:.1%} of the rows can't be used, judged by 10 of 40" in stopped.value.hint
    data(student, tmp_path, raw, max_faults=1 / 40 + (pictures + 0.5) / 10).inspect()


# --- stand-ins


def test_another_row_always_the_same_stands_in_and_says_so(student, tmp_path):
    raw = rows(tmp_path, 6)
    of = data(student, tmp_path, raw)
    (tmp_path / "2.png").write_text("no picture")
    expected = next(i for i in stand_ins(2, 6) if i != 2)
    for again in (of, data(student, tmp_path, raw)):
        example = again[2]
        assert example.id == f"r{expected}" and same(example, again[expected])
        (met,) = example.instead_of
        assert (met.row, met.id) == (2, "r2") and met.fault.startswith("unreadable image")
        assert again[expected].instead_of == ()


def test_stand_ins_are_drawn_from_all_rows_in_equal_parts():
    """A folder that is missing as a whole must not put one row in the place of thousands."""
    chosen = [list(stand_ins(i, 1000))[1] for i in range(1000, 6000)]
    assert max(chosen.count(i) for i in range(1000)) < 20
    assert all(next(stand_ins(i, 10)) == i for i in range(10))


def test_when_all_rows_fail_there_is_no_stand_in(student, tmp_path):
    of = data(student, tmp_path, rows(tmp_path, 3))
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(NoStandIn, match=r"rows.json: 100 rows one after another can't be used, the last: row"):
        of[0]


# --- in training


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_met_in_training_are_counted_once_and_listed(tmp_path, workers):
    raw = rows(tmp_path, 8)
    student = tiny.model()
    of = data(student, tmp_path, raw, max_faults=0.25)
    for i in (1, 5):
        (tmp_path / f"{i}.png").unlink()
    of.bad_rows.write_to(tmp_path / "skipped.jsonl")
    trained(student, of, tmp_path, steps=6, workers=workers)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(lines, key=lambda line: line["row"]) == [
        {"data": "rows.json", "row": i, "id": f"r{i}", "fault": f"no such image: {tmp_path}/{i}.png"} for i in (1, 5)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_rows_met_in_training_end_the_run(tmp_path, workers):
    raw = rows(tmp_path, 8)
    student = tiny.model()
    of = data(student, tmp_path, raw, max_faults=0.2)
    for i in (1, 5):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(UserError) as stopped:
        trained(student, of, tmp_path, steps=6, workers=workers)
    assert stopped.value.code == 2
    assert stopped.value.problems == tuple(
        f"rows.json: row {i}: r{i}: no such image: {tmp_path}/{i}.png" for i in (1, 5)
    )
    assert stopped.value.hint == ("mend or remove these rows: 2 of 8 rows can't be used (max_faults: 20.0%)")


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_go_away_are_reported_in_one_line(tmp_path, workers):
    student = tiny.model()
    of = data(student, tmp_path, rows(tmp_path, 4), max_faults=0.9)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(UserError) as stopped:
        trained(student, of, tmp_path, workers=workers)
    (problem,) = stopped.value.problems
    assert problem.startswith("rows.json: 100 rows one after another can't be used, the last: row ")
    assert stopped.value.hint == "check that the images are still there"


def test_the_list_holds_rows_met_before_it_was_opened(tmp_path):
    bad_rows = BadRows("rows.json", 100, 0.5)
    bad_rows.check_sample([Unusable(3, "c", "an answer is empty")], [], 100)
    bad_rows.write_to(tmp_path / "skipped.jsonl")
    bad_rows.add([Unusable(3, "c", "an answer is empty"), Unusable(1, "a", "no such image: é.png")])
    assert (tmp_path / "skipped.jsonl").read_text(encoding="utf-8") == (
        '{"data": "rows.json", "row": 3, "id": "c", "fault": "an answer is empty"}\n'
        '{"data": "rows.json", "row": 1, "id": "a", "fault": "no such image: é.png"}\n'
    )
    assert not Path(tmp_path / "other.jsonl").exists()


def test_without_unusable_rows_there_is_no_list(tmp_path):
    bad_rows = BadRows("rows.json", 100, 0.5)
    bad_rows.write_to(tmp_path / "skipped.jsonl")
    bad_rows.add([])
    assert not list(tmp_path.iterdir())


def test_a_list_that_a_kill_cut_off_is_named_with_its_line(tmp_path):
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"data": "rows", "row": 1, "id": "b", "fault": "no such image"}\n{"data": "ro')
    with pytest.raises(UserError, match=r"skipped\.jsonl:2: not readable as JSON"):
        BadRows("rows", 4, 1.0).write_to(file)
