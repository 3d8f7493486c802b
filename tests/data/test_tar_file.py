"""Webdataset's shards: files of one name are one row, which is found again without unpacking anything."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest

from switchkd_cli.engine.data import sources
from switchkd_cli.engine.data.image import open_image
from switchkd_cli.engine.data.sources import llava_json, open_rows
from switchkd_cli.errors import UserError
from tests.support import tiny

CAPTIONS = {"answer": "txt", "placeholder": "optional"}


def shard(file, *members, kind=tarfile.PAX_FORMAT):
    with tarfile.open(file, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(file)


def in_bytes(file, *members):
    return Path(shard(file, *members)).read_bytes()


@pytest.fixture
def png(tmp_path):
    return (tmp_path / tiny.picture(tmp_path, "a.png", 1)).read_bytes()


def conversation(name, image=None):
    return json.dumps({k: v for k, v in tiny.row(name, image, ("What?", name)).items() if k != "id"}).encode()


LONG = "folder/" + 60 * "é"  # more than a plain header holds


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_of_one_name_are_a_row(tmp_path, png, kind):
    members = [("0.png", png), ("0.json", conversation("dog", "0.png")), ("a/1.json", conversation("hi"))]
    members += [(f"{LONG}.json", conversation("cat", f"{LONG}.seg.png")), (f"{LONG}.seg.png", png)]
    rows = llava_json(tmp_path, file=shard(tmp_path / "s.tar", *members, kind=kind))
    assert [rows[i].exchanges[0][1] for i in range(len(rows))] == ["dog", "hi", "cat"]
    assert [rows[i].id for i in range(3)] == ["0", "a/1", LONG]
    assert rows.survey.faults == () and rows.survey.image_mask.tolist() == [True, False, True]
    for i in (0, 2):
        assert open_image(rows[i].images[0], None).tobytes() == open_image("a.png", tmp_path).tobytes()
    assert pickle.loads(pickle.dumps(rows))[2] == rows[2]


def test_shards_of_captions_are_one_data_set(tmp_path, png):
    for name in "ab":
        shard(tmp_path / f"{name}.tar", ("0.jpg", png), ("0.txt", f"dog {name}".encode()), ("0.json", b'{"url": "x"}'))
    rows = open_rows(tmp_path, file=f"{tmp_path}/*.tar", format=CAPTIONS)
    assert [rows[i].exchanges for i in range(2)] == [(("", "dog a"),), (("", "dog b"),)]
    assert list(rows.survey.note_lines()) == ["keys that are not read: url (2 rows)"]


def test_a_large_shard_is_read_through_once(tmp_path, png, monkeypatch):
    file = shard(
        tmp_path / "s.tar", *[(f"{i}.{end}", text) for i in range(3) for end, text in (("txt", b"a"), ("png", png))]
    )
    monkeypatch.setattr(sources, "CACHED_ROWS", 2)
    open_rows(tmp_path, file=file, format=CAPTIONS)
    monkeypatch.setattr(sources, "_read", None)
    assert open_rows(tmp_path, file=file, format=CAPTIONS)[2].images == (png,)


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("0.txt", b"a"), ("0.mp4", b"1")], "`mp4` of a row: only images can be used"),
        ([("README", b"a")], "a turn's txt is not text"),
        ([("0.json", b"[1]")], "a turn's txt is not text"),
    ],
)
def test_a_row_that_can_t_be_used_is_counted(tmp_path, members, fault):
    rows = open_rows(tmp_path, file=shard(tmp_path / "s.tar", *members, ("1.txt", b"b")), format=CAPTIONS)
    (found,) = rows.survey.faults
    assert found.row == 0 and fault in str(found)


def test_a_shard_that_can_t_be_read_is_named(tmp_path, png):
    whole = in_bytes(tmp_path / "s.tar", ("0.txt", b"a"), ("0.png", png))
    for content, why in (
        (whole[:700], "not readable as tar: unexpected end of data"),
        (b"no", "not readable as tar: "),
        (in_bytes(tmp_path / "t.tar", ("0.json", b"{")), "0: Expecting property name"),
        (in_bytes(tmp_path / "t.tar", ("0.txt", b"\xff")), "0: 'utf-8' codec can't decode"),
        (in_bytes(tmp_path / "t.tar"), "holds no rows"),
    ):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(UserError) as refused:
            open_rows(tmp_path, file=str(tmp_path / "bad.tar"), format=CAPTIONS)
        assert refused.value.problems[0].startswith(f"{tmp_path / 'bad.tar'}: {why}")


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="0.png: neither a file nor a folder"):
        open_rows(tmp_path, file=str(tmp_path / "s.tar"), format=CAPTIONS)


def test_a_shard_that_changed_since_is_an_unusable_row(tmp_path, png):
    file = shard(tmp_path / "s.tar", ("0.txt", b"a"), ("0.png", png))
    rows = open_rows(tmp_path, file=file, format=CAPTIONS)
    with open(file, "r+b") as stream:
        stream.write(b"x" * 600)
    with pytest.raises(Exception, match="not readable any more"):
        rows[0]


def test_the_order_of_a_row_s_pictures_is_that_of_its_list(tmp_path, png):
    """Names without leading zeros come in another order from the tenth on."""
    other = (tmp_path / tiny.picture(tmp_path, "b.png", 2)).read_bytes()
    row = json.loads(conversation("dog")) | {"images": ["0.2.png", "0.10.png"]}
    row["conversations"][0]["value"] = "<image>\n<image>\nWhich?"
    members = [("0.10.png", other), ("0.2.png", png), ("0.json", json.dumps(row).encode())]
    rows = llava_json(tmp_path, file=shard(tmp_path / "s.tar", *members))
    assert rows.survey.faults == () and rows[0].images == (png, other)
