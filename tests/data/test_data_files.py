"""Data files of every format and of any size: the same rows, found again without reading the whole file."""

import json
import os
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from switchkd_cli.engine.data import row_files, sources
from switchkd_cli.engine.data.image import open_image
from switchkd_cli.engine.data.row_files import scan
from switchkd_cli.engine.data.rows import Fault, Row
from switchkd_cli.engine.data.sources import llava_json, messages
from switchkd_cli.engine.data.turns import message_row
from switchkd_cli.errors import UserError
from tests.support import tiny


def saved(file, rows, *, indent=None, ascii=True):
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows) + "\n\n")
    else:
        file.write_text(json.dumps(rows, ensure_ascii=ascii, indent=indent), encoding="utf-8")
    return file


def as_messages(row):
    roles = {"human": "user", "gpt": "assistant"}
    said = [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
    return {"id": row["id"], "messages": said, "images": [row["image"]] if "image" in row else []}


def read(source, file, folder, **more):
    rows = source(folder / "cache", file=str(file), images=str(folder), **more)
    return [rows[i] for i in range(len(rows))]


@pytest.fixture
def rows(tmp_path):
    """Rows with letters of one to four bytes."""
    return [*tiny.rows(tmp_path), tiny.row("é", None, ("数?", "“two” 🐕"), ("q\\n", "a\tb"))]


ENDINGS = (".json", ".jsonl", ".parquet")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("ascii", [True, False])
def test_both_kinds_of_rows_are_read_from_every_format(tmp_path, rows, ending, ascii):
    expected = [
        Row("a", (("What is it?", "dog"), ("How many?", "three red apples")), ("a.png",)),
        Row("b", (("Say hi.", "hi there"),)),
        Row("c", (("Where?", "at the top left"), ("Yes?", "no"), ("What?", "a cat")), ("c.png",)),
        Row("d", (("What is it?", "a bus"),), ("d.png",)),
        Row("é", (("数?", "“two” 🐕"), ("q\\n", "a\tb"))),
    ]
    llava = saved(tmp_path / f"llava{ending}", rows, ascii=ascii)
    chat = saved(tmp_path / f"chat{ending}", [as_messages(row) for row in rows], ascii=ascii)
    assert read(llava_json, llava, tmp_path) == expected
    assert read(messages, chat, tmp_path) == expected
    assert read(messages, chat, tmp_path, limit=2) == expected[:2]


def test_pictures_may_lie_in_the_parquet_file(tmp_path):
    name = tiny.picture(tmp_path, "a.png", 1)
    picture = {"bytes": (tmp_path / name).read_bytes(), "path": "../../elsewhere/a.png"}
    turns = tiny.row("r", name, ("What?", "dog"))["conversations"]
    pictured, text = {"id": 1, "conversations": turns}, tiny.row("t", None, ("What?", "dog"))
    file = saved(tmp_path / "llava.parquet", [pictured | {"image": picture}, text | {"id": 2}])
    found = llava_json(tmp_path / "cache", file=str(file))
    assert found.survey.faults == () and found.survey.image_mask.tolist() == [True, False]
    assert found[0].images == (picture["bytes"],) and found[1].images == ()
    assert open_image(found[0].images[0], None).tobytes() == open_image("a.png", tmp_path).tobytes()
    chat = as_messages(tiny.row("r", name, ("What?", "dog"))) | {"images": [picture]}
    found = messages(tmp_path / "cache", file=str(saved(tmp_path / "chat.parquet", [chat])))
    assert found.survey.faults == () and found[0].images == (picture["bytes"],)


def test_a_large_parquet_file_is_read_through_its_arrow_copy(tmp_path, rows, monkeypatch):
    file = saved(tmp_path / "rows.parquet", rows)
    in_memory = read(llava_json, file, tmp_path)
    monkeypatch.setattr(row_files, "IN_MEMORY", 0)
    assert read(llava_json, file, tmp_path) == in_memory
    assert list((tmp_path / "cache" / "indexes" / "arrow").rglob("*.arrow"))


# --- messages


def chat(*said, **more):
    return {"messages": [{"role": role, "content": content} for role, content in said], **more}


def test_content_in_parts_is_text_and_a_placeholder():
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    row = chat(("user", parts), ("assistant", [{"type": "text", "text": "dog"}]), images=["a.png"])
    assert message_row(row) == Row("", (("What?", "dog"),), ("a.png",))


def test_a_system_message_and_one_image():
    row = chat(("system", "Be brief."), ("user", "<image>What?"), ("assistant", "dog"), image="a.png", id=7)
    assert message_row(row) == Row("7", (("What?", "dog"),), ("a.png",), "Be brief.")


def test_a_row_without_an_id_is_called_by_its_number(tmp_path):
    file = saved(tmp_path / "chat.json", [chat(("user", "What?"), ("assistant", "dog"))] * 2)
    assert [row.id for row in read(messages, file, tmp_path)] == ["0", "1"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a row", "not a mapping with a `messages` list"),
        ({"messages": "hi"}, "no `messages` list"),
        ({"messages": ["hi"]}, "no `messages` list"),
        (chat(), "no `messages` list"),
        (chat(("system", "Hi.")), "turns must go user, assistant, .*; a conversation needs an answer, got system"),
        (chat(("user", "Hi?")), "a conversation needs an answer, got user"),
        (chat(("assistant", "Hi."), ("user", "Hi?")), "got assistant, user"),
        (chat(("user", None), ("assistant", "ho")), "a turn's content is not text"),
        (chat(("user", [{"type": "video"}]), ("assistant", "ho")), "a part of a turn is text or image, got video"),
        (chat(("user", "Hi?"), ("assistant", " ")), "no answer to learn: an empty answer"),
        (chat(("user", "Hi?"), ("assistant", "ho"), images=["a.png"]), "1, one in a question for each image; got none"),
        (chat(("user", "<image>"), ("assistant", "ho"), images=[]), "none, as the row has no image"),
        (chat(("user", "<image><image>"), ("assistant", "ho"), images=["a"]), "1, one in a .*; got 2 in turn 1"),
    ],
)
def test_a_faulty_row_of_messages(row, expected):
    with pytest.raises(Fault, match=expected):
        message_row(row)


# --- large files: where rows lie


@pytest.mark.parametrize("window", [1, 7, 64, 1000])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii", [True, False])
def test_rows_are_found_whatever_the_window(tmp_path, rows, window, indent, ascii, monkeypatch):
    monkeypatch.setattr(row_files, "WINDOW", window)
    file = saved(tmp_path / "rows.json", rows, indent=indent, ascii=ascii)
    content = file.read_bytes()
    spans = list(scan(file))
    assert [row for *_, row in spans] == rows
    assert [json.loads(content[begin:end]) for begin, end, _ in spans] == rows


def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path, rows):
    file = tmp_path / "rows.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    assert [row.id for row in read(llava_json, file, tmp_path)] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"id": 1}\n{"id": \n', "not readable as JSON: Expecting value, line 2"), ("\n\n", "holds no rows")],
)
def test_lines_that_are_no_rows_are_named(tmp_path, text, expected):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError) as refused:
        llava_json(tmp_path / "cache", file=str(tmp_path / "rows.jsonl"))
    assert refused.value.problems == (f"{tmp_path / 'rows.jsonl'}: {expected}",)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_text("no")
    with pytest.raises(UserError, match=r"rows.parquet: not readable as parquet: "):
        llava_json(tmp_path / "cache", file=str(tmp_path / "rows.parquet"))


# --- large files: what was found is kept


@pytest.fixture
def keeping(monkeypatch):
    monkeypatch.setattr(sources, "CACHED_ROWS", 2)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_large_file_is_read_through_once(tmp_path, rows, ending, keeping, monkeypatch):
    file = saved(tmp_path / f"rows{ending}", [*rows, tiny.row("out", "../a.png", ("What?", "dog"))])
    first = llava_json(tmp_path / "cache", file=str(file), images=str(tmp_path))
    monkeypatch.setattr(sources, "_read", None)
    again = llava_json(tmp_path / "cache", file=str(file), images=str(tmp_path))
    assert [again[i] for i in range(len(rows))] == [first[i] for i in range(len(rows))]
    assert again.survey.faults == first.survey.faults
    (fault,) = again.survey.faults
    assert (fault.row, fault.id, fault.refused) == (5, "out", True)
    for name in ("sizes", "image_mask"):
        assert np.array_equal(getattr(again.survey, name), getattr(first.survey, name))


def test_a_large_file_is_read_where_nothing_can_be_kept(tmp_path, rows, keeping, monkeypatch):
    monkeypatch.setenv("SWITCHKD_CACHE", str(tmp_path / "rows.json" / "no folder"))
    assert len(read(llava_json, saved(tmp_path / "rows.json", rows), tmp_path)) == 5


def test_a_changed_file_is_read_anew(tmp_path, rows, keeping):
    file = saved(tmp_path / "rows.json", rows)
    assert len(read(llava_json, file, tmp_path)) == 5
    assert len(read(llava_json, file, tmp_path, limit=3)) == 3
    saved(file, rows[1:])
    assert [row.id for row in read(llava_json, file, tmp_path)] == ["b", "c", "d", "é"]
    text = file.read_text().replace('"b"', '"B"')  # of the same length
    before = file.stat()
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert read(llava_json, file, tmp_path)[0].id == "B"


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_can_be_sent_to_another_process(tmp_path, rows, ending):
    file = saved(tmp_path / f"rows{ending}", rows)
    here = llava_json(tmp_path / "cache", file=str(file), images=str(tmp_path))
    first = here[0]
    there = pickle.loads(pickle.dumps(here))
    assert there[0] == first and len(there) == 5
