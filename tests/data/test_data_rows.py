"""Rows from files: what is read, and what is refused with which words."""

import json

import pytest
from PIL import ImageFile

from switchkd_cli.engine.data import image as picture
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import NAMED_ROWS
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.errors import UserError
from tests.support import tiny
from tests.support.square_inputs import SquareInputs

ASKED = (("How many?", "dog"), ("What is", "a dog"))


@pytest.fixture(scope="module")
def processor():
    return tiny.model().inputs.processor


@pytest.fixture
def opened(processor, tmp_path):
    """A file as training opens it: the rows, when they are sound."""

    def run(file, images, limit=None, **more):
        images = None if images is None else str(images)
        rows = llava_json(tmp_path / "cache", file=str(file), images=images, limit=limit, **more)
        Conversations(rows, SquareInputs(processor, 2), max_faults=0.01).inspect()
        assert not (tmp_path / "cache").exists()  # small files leave nothing behind
        return rows

    return run


@pytest.fixture
def refused(opened):
    """The problems of a file that is refused."""

    def run(*arguments):
        with pytest.raises(UserError) as error:
            opened(*arguments)
        assert error.value.code == 2
        assert not any("\n" in problem for problem in error.value.problems)
        return list(error.value.problems)

    return run


def saved(folder, *rows, text=None):
    file = folder / "rows.json"
    file.write_text(json.dumps(rows) if text is None else text, encoding="utf-8")
    return file


def spoiled(image="a.png", question="<image>\nWhat?", *values):
    """A row as it comes from a careless script."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "dog"}]
    turns += [{"from": speaker, "value": value} for speaker, value in values]
    return {"id": "r", "image": image, "conversations": turns}


def without(row, key):
    return {k: v for k, v in row.items() if k != key}


def said(*turns, **more):
    return {"id": "r", "conversations": [{"from": f, "value": v} for f, v in turns], **more}


def ids(rows):
    return [rows[i].id for i in range(len(rows))]


def test_good_rows_are_read_as_they_are(opened, tmp_path):
    good = tiny.rows(tmp_path)
    read = opened(saved(tmp_path, *good), tmp_path)
    assert ids(read) == ["a", "b", "c", "d"]
    assert read[2].exchanges == (("Where?", "at the top left"), ("Yes?", "no"), ("What?", "a cat"))
    assert [read[i].images for i in range(4)] == [("a.png",), (), ("c.png",), ("d.png",)]
    assert read.survey.image_mask.tolist() == [True, False, True, True]
    assert read.survey.sizes.tolist() == [len("What is it?dogHow many?three red apples"), 15, 37, 16]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a row", "not a mapping with a `conversations` list"),
        (without(spoiled(), "conversations"), "r: no `conversations` list"),
        (spoiled() | {"conversations": []}, "r: no `conversations` list"),
        (spoiled() | {"conversations": ["hi", "ho"]}, "r: no `conversations` list"),
        (
            said(("human", "Hi?")),
            "r: turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got human",
        ),
        (
            said(("human", "Hi?"), ("gpt", "ho"), ("human", "And?")),
            "r: turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got human, gpt, human",
        ),
        (
            said(("human", "Hi?"), ("assistant", "ho")),
            "r: turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got human, assistant",
        ),
        (
            said(("gpt", "ho"), ("human", "Hi?")),
            "r: turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got gpt, human",
        ),
        (said(("human", "Hi?"), ("gpt", "")), "r: no answer to learn: an empty answer"),
        (said(("human", "Hi?"), ("gpt", " \n")), "r: no answer to learn: an empty answer"),
        (said(("human", "Hi?"), ("gpt", 7)), "r: a turn's value is not text"),
        (said(("human", None), ("gpt", "ho")), "r: a turn's value is not text"),
        (spoiled(question="What?"), "r: <image> placeholders: 1, one in a question for each image; got none"),
        (
            spoiled(question="<image>\n<image>\nWhat?"),
            "r: <image> placeholders: 1, one in a question for each image; got 2 in turn 1",
        ),
        (
            spoiled("a.png", "<image>\nWhat?", ("human", "And?"), ("gpt", "<image>")),
            "r: <image> placeholders: 1, one in a question for each image; got 1 in turn 1, 1 in turn 4",
        ),
        (without(spoiled(), "image"), "r: <image> placeholders: none, as the row has no image; got 1 in turn 1"),
        (
            spoiled(image=["a.png", "b.png"]),
            "r: <image> placeholders: 2, one in a question for each image; got 1 in turn 1",
        ),
        (spoiled(image="../a.png"), "r: image path leaves its folder: ../a.png"),
        (spoiled(image="b/../a.png"), "r: image path leaves its folder: b/../a.png"),
        (spoiled(image="/etc/a.png"), "r: image path leaves its folder: /etc/a.png"),
        (spoiled(image=".."), "r: image path leaves its folder: .."),
        (spoiled(image="none.png"), "r: no such image: PICTURES/none.png"),
        (spoiled(image=""), "r: <image> placeholders: none, as the row has no image; got 1 in turn 1"),
        (spoiled(image="cut.png"), "r: unreadable image PICTURES/cut.png: "),
        (spoiled(image="text.png"), "r: unreadable image PICTURES/text.png: cannot identify image file"),
        (spoiled(image="empty.png"), "r: unreadable image PICTURES/empty.png: cannot identify image file"),
    ],
)
def test_a_faulty_row_is_named_with_its_fault(refused, tmp_path, row, expected):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    tiny.picture(pictures, "a.png", 1)
    tiny.picture(tmp_path, "a.png", 1)
    (pictures / "cut.png").write_bytes((pictures / "a.png").read_bytes()[:700])
    (pictures / "text.png").write_text("not a picture")
    (pictures / "empty.png").touch()
    file = saved(tmp_path, tiny.row("good", None, *ASKED), row)
    (problem,) = refused(file, pictures)
    told = f"{file}: row 1: {expected.replace('PICTURES', str(pictures))}"
    assert problem.startswith(told) if "unreadable" in expected else problem == told


def test_an_image_needs_an_image_folder(refused, tmp_path):
    file = saved(tmp_path, spoiled())
    assert refused(file, None) == [f"{file}: row 0: r: has an image, but the data names no `images` folder"]


def test_every_faulty_row_is_counted_and_the_first_are_named(refused, tmp_path):
    bad = [said(("human", "Hi?"), id=f"bad{i}") for i in range(NAMED_ROWS + 3)]
    file = saved(tmp_path, *tiny.rows(tmp_path), *bad)
    problems = refused(file, tmp_path)
    assert [problem.split(": ")[1:3] for problem in problems[:-1]] == [
        [f"row {4 + i}", f"bad{i}"] for i in range(NAMED_ROWS)
    ]
    assert problems[-1] == "... and 3 more of 12 rows"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not readable as JSON: Expecting property name"),
        ("", "not readable as JSON: Expecting value"),
        ("{}", "not a JSON list of rows, but a dict"),
        ('"rows"', "not a JSON list of rows, but a str"),
        ("7", "not a JSON list of rows, but a int"),
        ("[]", "holds no rows"),
        ("[{}", "not readable as JSON: Expecting ',' delimiter"),
        ("[{}, ", "not readable as JSON: Expecting value"),
        ('[{"id": "a', "not readable as JSON: Unterminated string"),
        ("[{}] []", "not readable as JSON: Extra data"),
        ("{}\n{}", "not a JSON list of rows, but a dict followed by more (JSON lines? then its name must end"),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_refused(refused, tmp_path, text, expected):
    (problem,) = refused(saved(tmp_path, text=text), tmp_path)
    assert problem.startswith(f"{tmp_path / 'rows.json'}: {expected}")


def test_a_file_that_is_no_text_is_refused(refused, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(b"\xff\xfe[]")
    assert refused(file, None)[0].startswith(f"{file}: not readable as JSON: ")


def test_a_file_of_an_unknown_kind_is_refused(refused, tmp_path):
    (tmp_path / "rows.csv").touch()
    assert refused(tmp_path / "rows.csv", None) == [
        f"{tmp_path / 'rows.csv'}: a data file's name ends in .json, .jsonl, .parquet, .tar, got '.csv'"
    ]


def test_missing_files_are_named(refused, tmp_path):
    assert refused(tmp_path / "rows.json", None) == [f"{tmp_path / 'rows.json'}: no such data file"]
    assert refused(tmp_path, None) == [f"{tmp_path}: no such data file"]
    file = saved(tmp_path, *tiny.rows(tmp_path))
    assert refused(file, tmp_path / "none") == [f"{tmp_path / 'none'}: no such image folder"]
    assert refused(file, file) == [f"{file}: no such image folder"]


def test_only_the_rows_up_to_the_limit_are_read_and_checked(opened, refused, tmp_path):
    good = tiny.rows(tmp_path)
    file = saved(tmp_path, *good, spoiled(image="none.png"))
    assert ids(opened(file, tmp_path, 2)) == ["a", "b"]
    assert ids(opened(file, tmp_path, 4)) == ["a", "b", "c", "d"]


def test_no_image_can_be_said_as_null(opened, tmp_path):
    row = tiny.row("r", None, *ASKED) | {"image": None}
    assert opened(saved(tmp_path, row), tmp_path)[0].images == ()


def test_image_folders_may_be_links_when_the_recipe_says_so(opened, refused, tmp_path):
    elsewhere, images = tmp_path / "elsewhere", tmp_path / "images"
    elsewhere.mkdir()
    images.mkdir()
    (images / "coco").symlink_to(elsewhere, target_is_directory=True)
    tiny.picture(elsewhere, "a.png", 1)
    file = saved(tmp_path, spoiled(image="coco/a.png"))
    assert len(opened(file, images, follow_links=True)) == 1
    assert "leaves its folder by a link" in refused(file, images)[0]


def test_a_truncated_image_is_refused_after_an_evaluation_too(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # lmms-eval's import leaves it so
    name = tiny.picture(tmp_path, "a.png", 1)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:700])
    assert "unreadable image" in refused(saved(tmp_path, spoiled()), tmp_path)[0]


def test_a_decompression_bomb_is_refused(refused, tmp_path, monkeypatch):
    tiny.picture(tmp_path, "a.png", 1)
    monkeypatch.setattr(picture.Image, "MAX_IMAGE_PIXELS", 100)
    assert "decompression bomb" in refused(saved(tmp_path, spoiled()), tmp_path)[0]


def test_an_answer_before_the_first_question_is_left_out(opened, tmp_path):
    row = said(("gpt", "Welcome!"), ("human", "Hi?"), ("gpt", "ho"))
    assert opened(saved(tmp_path, row), None)[0].exchanges == (("Hi?", "ho"),)
