"""Conversations as tokens, masks and pictures; and rows that are refused."""

import json
from itertools import groupby
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image, ImageFile

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.data import rows as rows_module
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.llava_json import llava_json
from switchkd_cli.engine.data.playground import playground
from switchkd_cli.engine.data.rows import SHOWN, read_rows
from switchkd_cli.errors import UserError
from switchkd_cli.playground.world import SPLITS
from switchkd_cli.playground.write import KINDS
from tests import tiny


@pytest.fixture(scope="module")
def processor():
    return tiny.model().processor


def conversations(processor, folder, *rows, turns="chained", image_tokens=2):
    return Conversations(rows, folder, processor, image_tokens, turns)


def written(processor, example):
    """The tokens of each turn on a line after the turn's number; the supervised ones in brackets."""
    words = processor.tokenizer.convert_ids_to_tokens(example.input_ids)
    assert all(label in (IGNORE, id_) for label, id_ in zip(example.labels, example.input_ids, strict=True))
    marked = [
        (int(turn), word if label == IGNORE else f"[{word}]")
        for turn, word, label in zip(example.turn, words, example.labels, strict=True)
    ]
    lines = groupby(marked, key=lambda pair: pair[0])
    return [f"{turn}: " + " ".join(word for _, word in pairs) for turn, pairs in lines]


ASKED = (("How many?", "dog"), ("What is", "a dog"))


def test_a_chained_conversation_token_by_token(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    assert written(processor, conversations(processor, tmp_path, row)[0]) == [
        (
            "0: <image> <image> <|user|> How Ġmany ? <|assistant|> [dog] [<|end|>]"
            " <|user|> What Ġis <|assistant|> [a] [ dog] [<|end|>]"
        )
    ]


def test_independent_turns_token_by_token(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    assert written(processor, conversations(processor, tmp_path, row, turns="independent")[0]) == [
        "0: <image> <image>",
        "1: <|user|> How Ġmany ? <|assistant|> [dog] [<|end|>]",
        "2: <|user|> What Ġis <|assistant|> [a] [ dog] [<|end|>]",
    ]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (
            "chained",
            [
                (
                    "0: <|user|> How Ġmany ? <|assistant|> [dog] [<|end|>]"
                    " <|user|> What Ġis <|assistant|> [a] [ dog] [<|end|>]"
                )
            ],
        ),
        (
            "independent",
            [
                "1: <|user|> How Ġmany ? <|assistant|> [dog] [<|end|>]",
                "2: <|user|> What Ġis <|assistant|> [a] [ dog] [<|end|>]",
            ],
        ),
    ],
)
def test_text_only_rows_token_by_token(processor, tmp_path, turns, expected):
    row = tiny.row("r", None, *ASKED)
    example = conversations(processor, tmp_path, row, turns=turns)[0]
    assert written(processor, example) == expected
    assert example.picture is None


@pytest.mark.parametrize("turns", ["chained", "independent"])
@pytest.mark.parametrize("question", ["<image>\nHow many?", "How many?\n<image>", "<image>How many?"])
def test_the_image_comes_first_wherever_its_placeholder_stands(processor, tmp_path, turns, question):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), ("How many?", "dog"))
    row["conversations"][0]["value"] = question
    tokens = " ".join(written(processor, conversations(processor, tmp_path, row, turns=turns)[0]))
    assert (
        tokens.replace(" 1:", "") == "0: <image> <image> <|user|> How Ġmany ? <|assistant|> [dog] [<|end|>]"
    )


def test_a_picture_alone_can_be_the_question(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), ("", "dog"))
    row["conversations"][0]["value"] = "<image>"
    expected = ["0: <image> <image> <|user|> <|assistant|> [dog] [<|end|>]"]
    assert written(processor, conversations(processor, tmp_path, row)[0]) == expected


def test_an_example_read_again_is_the_same(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    data = conversations(processor, tmp_path, row)
    first, again, anew = data[0], data[0], conversations(processor, tmp_path, row)[0]
    assert first is again
    for name in ("input_ids", "labels", "turn", "picture"):
        assert torch.equal(getattr(first, name), getattr(anew, name)), name


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1", "CMYK"])
def test_pictures_of_any_mode_become_rgb(processor, tmp_path, mode):
    ending = "tif" if mode == "CMYK" else "png"
    plain = Image.open(tmp_path / tiny.picture(tmp_path, "plain.png", 1)).convert(mode)
    plain.save(tmp_path / f"other.{ending}")
    plain.convert("RGB").save(tmp_path / "rgb.png")
    one, other = (
        conversations(processor, tmp_path, tiny.row("r", name, *ASKED))[0].picture
        for name in (f"other.{ending}", "rgb.png")
    )
    assert one.shape == (3, 24, 24)
    assert torch.equal(one, other)


def test_a_picture_is_resized_and_normalised(processor, tmp_path):
    Image.new("RGB", (90, 50), (255, 0, 127)).save(tmp_path / "large.png")
    picture = conversations(processor, tmp_path, tiny.row("r", "large.png", *ASKED))[0].picture
    assert picture.shape == (3, 24, 24)
    expected = torch.tensor([1.0, -1.0, 127 / 127.5 - 1])[:, None, None].expand(3, 24, 24)
    torch.testing.assert_close(picture, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("turns", "hint"), [("independant", "did you mean 'independent'?"), ("", "known: chained, independent")]
)
def test_an_unknown_way_of_turns_is_refused(processor, tmp_path, turns, hint):
    file = saved(tmp_path, tiny.row("r", None, *ASKED))
    with pytest.raises(UserError) as refused:
        llava_json(processor, 2, tmp_path, file=str(file), turns=turns)
    assert refused.value.problems == (f"turns: unknown value, got {turns!r} ({hint})",)


def test_what_a_recipe_may_ask_of_the_playground_is_what_there_is():
    hints = get_type_hints(playground)
    assert set(get_args(hints["kind"])) == set(KINDS)
    assert set(get_args(hints["split"])) == set(SPLITS)


# --- rows that are refused


def saved(folder, *rows, text=None):
    file = folder / "rows.json"
    file.write_text(json.dumps(rows) if text is None else text, encoding="utf-8")
    return file


def refused(*arguments):
    with pytest.raises(UserError) as error:
        read_rows(*arguments)
    assert error.value.code == 2
    assert not any("\n" in problem for problem in error.value.problems)
    return list(error.value.problems)


def spoiled(image="a.png", question="<image>\nWhat?", *values):
    """A row as it comes from a careless script."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "dog"}]
    turns += [{"from": speaker, "value": value} for speaker, value in values]
    return {"id": "r", "image": image, "conversations": turns}


def without(row, key):
    return {k: v for k, v in row.items() if k != key}


def said(*turns, **more):
    return {"id": "r", "conversations": [{"from": f, "value": v} for f, v in turns], **more}


def test_good_rows_are_read_as_they_are(tmp_path):
    good = tiny.rows(tmp_path)
    assert read_rows(saved(tmp_path, *good), tmp_path) == good


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a row", "not a mapping with an `id`"),
        (without(spoiled(), "id"), "not a mapping with an `id`"),
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
        (said(("human", "Hi?"), ("gpt", "")), "r: an answer is empty"),
        (said(("human", "Hi?"), ("gpt", " \n")), "r: an answer is empty"),
        (said(("human", "Hi?"), ("gpt", 7)), "r: a turn's value is not text"),
        (said(("human", None), ("gpt", "ho")), "r: a turn's value is not text"),
        (
            spoiled(question="What?"),
            "r: <image> placeholders: one, in the first question; got none",
        ),
        (
            spoiled(question="<image>\n<image>\nWhat?"),
            "r: <image> placeholders: one, in the first question; got 2 in turn 1",
        ),
        (
            spoiled("a.png", "What?", ("human", "<image>\nAnd?"), ("gpt", "cat")),
            "r: <image> placeholders: one, in the first question; got 1 in turn 3",
        ),
        (
            spoiled("a.png", "<image>\nWhat?", ("human", "And?"), ("gpt", "<image>")),
            "r: <image> placeholders: one, in the first question; got 1 in turn 1, 1 in turn 4",
        ),
        (
            without(spoiled(), "image"),
            "r: <image> placeholders: none, as the row has no image; got 1 in turn 1",
        ),
        (spoiled(image=["a.png", "b.png"]), "r: an image is named by one path, got ['a.png', 'b.png']"),
        (spoiled(image="../a.png"), "r: image path leaves its folder: ../a.png"),
        (spoiled(image="b/../a.png"), "r: image path leaves its folder: b/../a.png"),
        (spoiled(image="/etc/a.png"), "r: image path leaves its folder: /etc/a.png"),
        (spoiled(image=".."), "r: image path leaves its folder: .."),
        (spoiled(image="none.png"), "r: no such image: PICTURES/none.png"),
        (spoiled(image=""), "r: no such image: PICTURES"),
        (spoiled(image="cut.png"), "r: unreadable image PICTURES/cut.png: "),
        (spoiled(image="text.png"), "r: unreadable image PICTURES/text.png: cannot identify image file"),
        (spoiled(image="empty.png"), "r: unreadable image PICTURES/empty.png: cannot identify image file"),
    ],
)
def test_a_faulty_row_is_named_with_its_fault(tmp_path, row, expected):
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


def test_an_image_needs_an_image_folder(tmp_path):
    file = saved(tmp_path, spoiled())
    assert refused(file, None) == [f"{file}: row 0: r: has an image, but the data names no `images` folder"]


def test_every_faulty_row_is_counted_and_the_first_are_named(tmp_path):
    bad = [said(("human", "Hi?"), id=f"bad{i}") for i in range(SHOWN + 3)]
    file = saved(tmp_path, *tiny.rows(tmp_path), *bad)
    problems = refused(file, tmp_path)
    assert [problem.split(": ")[1:3] for problem in problems[:-1]] == [
        [f"row {4 + i}", f"bad{i}"] for i in range(SHOWN)
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
    ],
)
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path, text, expected):
    (problem,) = refused(saved(tmp_path, text=text), tmp_path)
    assert problem.startswith(f"{tmp_path / 'rows.json'}: {expected}")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(b"\xff\xfe[]")
    assert refused(file, None)[0].startswith(f"{file}: not readable as JSON: ")


def test_missing_files_are_named(tmp_path):
    assert refused(tmp_path / "rows.json", None) == [f"{tmp_path / 'rows.json'}: no such data file"]
    assert refused(tmp_path, None) == [f"{tmp_path}: no such data file"]
    file = saved(tmp_path, *tiny.rows(tmp_path))
    assert refused(file, tmp_path / "none") == [f"{tmp_path / 'none'}: no such image folder"]
    assert refused(file, file) == [f"{file}: no such image folder"]


def test_only_the_rows_up_to_the_limit_are_read_and_checked(tmp_path):
    good = tiny.rows(tmp_path)
    file = saved(tmp_path, *good, spoiled(image="none.png"))
    assert read_rows(file, tmp_path, limit=2) == good[:2]
    assert read_rows(file, tmp_path, limit=4) == good
    for limit in (0, -1):
        assert refused(file, tmp_path, limit) == [f"limit: must be 1 or more, got {limit}"]


def test_no_image_can_be_said_as_null(processor, tmp_path):
    row = tiny.row("r", None, *ASKED) | {"image": None}
    rows = read_rows(saved(tmp_path, row), tmp_path)
    assert conversations(processor, tmp_path, *rows)[0].picture is None


def test_image_folders_may_be_links(tmp_path):
    elsewhere, images = tmp_path / "elsewhere", tmp_path / "images"
    elsewhere.mkdir()
    images.mkdir()
    (images / "coco").symlink_to(elsewhere, target_is_directory=True)
    tiny.picture(elsewhere, "a.png", 1)
    assert read_rows(saved(tmp_path, spoiled(image="coco/a.png")), images)


def test_a_truncated_image_is_refused_after_an_evaluation_too(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # lmms-eval's import leaves it so
    name = tiny.picture(tmp_path, "a.png", 1)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:700])
    assert "unreadable image" in refused(saved(tmp_path, spoiled()), tmp_path)[0]


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    tiny.picture(tmp_path, "a.png", 1)
    monkeypatch.setattr(rows_module.Image, "MAX_IMAGE_PIXELS", 100)
    assert "decompression bomb" in refused(saved(tmp_path, spoiled()), tmp_path)[0]
