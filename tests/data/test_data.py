"""Conversations as tokens, masks and pictures."""

from contextlib import suppress
from itertools import groupby
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.data import conversation
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Fault, Rows
from switchkd_cli.engine.data.sources import playground
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.errors import UserError
from switchkd_cli.playground.training_rows import KINDS
from switchkd_cli.playground.world import SPLITS
from tests.support import tiny, tiny_qwen
from tests.support.square_inputs import SquareInputs


@pytest.fixture(scope="module")
def processor():
    return tiny.model().inputs.processor


def conversations(processor, folder, *rows, turns="chained", image_tokens=2, **more):
    return Conversations(
        Rows(rows, llava_row, images=folder, turns=turns), SquareInputs(processor, image_tokens), **more
    )


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
            "0: <image> <image> <|user|> ▁How ▁many ? <|assistant|> [▁dog] [<|end|>]"
            " <|user|> ▁What ▁is <|assistant|> [▁a] [▁dog] [<|end|>]"
        )
    ]


def test_independent_turns_token_by_token(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    assert written(processor, conversations(processor, tmp_path, row, turns="independent")[0]) == [
        "0: <image> <image>",
        "1: <|user|> ▁How ▁many ? <|assistant|> [▁dog] [<|end|>]",
        "2: <|user|> ▁What ▁is <|assistant|> [▁a] [▁dog] [<|end|>]",
    ]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (
            "chained",
            [
                (
                    "0: <|user|> ▁How ▁many ? <|assistant|> [▁dog] [<|end|>]"
                    " <|user|> ▁What ▁is <|assistant|> [▁a] [▁dog] [<|end|>]"
                )
            ],
        ),
        (
            "independent",
            [
                "1: <|user|> ▁How ▁many ? <|assistant|> [▁dog] [<|end|>]",
                "2: <|user|> ▁What ▁is <|assistant|> [▁a] [▁dog] [<|end|>]",
            ],
        ),
    ],
)
def test_text_only_rows_token_by_token(processor, tmp_path, turns, expected):
    row = tiny.row("r", None, *ASKED)
    example = conversations(processor, tmp_path, row, turns=turns)[0]
    assert written(processor, example) == expected
    assert example.images == ()


@pytest.mark.parametrize("turns", ["chained", "independent"])
@pytest.mark.parametrize("question", ["<image>\nHow many?", "How many?\n<image>", "<image>How many?"])
def test_the_image_comes_first_wherever_its_placeholder_stands(processor, tmp_path, turns, question):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), ("How many?", "dog"))
    row["conversations"][0]["value"] = question
    tokens = " ".join(written(processor, conversations(processor, tmp_path, row, turns=turns)[0]))
    assert tokens.replace(" 1:", "") == "0: <image> <image> <|user|> ▁How ▁many ? <|assistant|> [▁dog] [<|end|>]"


def test_a_picture_alone_can_be_the_question(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), ("", "dog"))
    row["conversations"][0]["value"] = "<image>"
    expected = ["0: <image> <image> <|user|> <|assistant|> [▁dog] [<|end|>]"]
    assert written(processor, conversations(processor, tmp_path, row)[0]) == expected


def test_an_example_read_again_is_the_same(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    data = conversations(processor, tmp_path, row)
    first, again, anew = data[0], data[0], conversations(processor, tmp_path, row)[0]
    assert first is again
    for name in ("input_ids", "labels", "turn", "image"):
        assert torch.equal(getattr(first, name), getattr(anew, name)), name
    assert torch.equal(first.images[0]["pixel_values"], anew.images[0]["pixel_values"])


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1", "CMYK"])
def test_pictures_of_any_mode_become_rgb(processor, tmp_path, mode):
    ending = "tif" if mode == "CMYK" else "png"
    plain = Image.open(tmp_path / tiny.picture(tmp_path, "plain.png", 1)).convert(mode)
    plain.save(tmp_path / f"other.{ending}")
    plain.convert("RGB").save(tmp_path / "rgb.png")
    one, other = (
        conversations(processor, tmp_path, tiny.row("r", name, *ASKED))[0].images[0]["pixel_values"]
        for name in (f"other.{ending}", "rgb.png")
    )
    assert one.shape == (3, 24, 24)
    assert torch.equal(one, other)


def test_a_picture_is_resized_and_normalised(processor, tmp_path):
    Image.new("RGB", (90, 50), (255, 0, 127)).save(tmp_path / "large.png")
    (image,) = conversations(processor, tmp_path, tiny.row("r", "large.png", *ASKED))[0].images
    picture = image["pixel_values"]
    assert picture.shape == (3, 24, 24)
    expected = torch.tensor([1.0, -1.0, 127 / 127.5 - 1])[:, None, None].expand(3, 24, 24)
    torch.testing.assert_close(picture, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("turns", "hint"), [("independant", "did you mean 'independent'?"), ("", "known: chained, independent")]
)
def test_an_unknown_way_of_turns_is_refused(turns, hint):
    with pytest.raises(UserError) as refused:
        Rows([], llava_row, turns=turns)
    assert refused.value.problems == (f"turns: unknown value, got {turns!r} ({hint})",)


def test_a_small_set_stays_in_memory_and_a_large_one_does_not(processor, tmp_path, monkeypatch):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    size = 3 * 24 * 24 * 4 + (3 * 8 + 1) * len(conversations(processor, tmp_path, row)[0].input_ids)
    for kept in (2 * size, 2 * size - 1):
        monkeypatch.setattr(conversation, "CACHE_BYTES", kept)
        data = conversations(processor, tmp_path, row, row)
        first, again = data[0], data[0]
        assert (first is again) == data.fits_in_memory == (kept == 2 * size)


# --- max_length: [image image user How many ? assistant dog end user What is assistant a dog end]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (8, "0: <image> <image> <|user|> ▁How ▁many ? <|assistant|> [▁dog]"),
        (9, "0: <image> <image> <|user|> ▁How ▁many ? <|assistant|> [▁dog] [<|end|>]"),
        (11, "0: <image> <image> <|user|> ▁How ▁many ? <|assistant|> [▁dog] [<|end|>] <|user|> ▁What"),
    ],
)
def test_tokens_past_the_longest_length_are_cut(processor, tmp_path, length, expected):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    example = conversations(processor, tmp_path, row, max_length=length)[0]
    assert written(processor, example) == [expected]
    assert len(example.images) == 1
    assert len(example.turn) == length


@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (1, "its image ends at token 2, max_length is 1"),
        (2, "no supervised token in the first 2"),
        (7, "no supervised token in the first 7"),
    ],
)
@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_a_picture_is_never_cut_and_an_answer_must_be_left(processor, tmp_path, turns, length, fault):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    data = conversations(processor, tmp_path, row, turns=turns, max_length=length, max_faults=0.5)
    with pytest.raises(UserError) as stopped:
        data.inspect()
    assert stopped.value.problems == (f"rows: row 0: r: {fault}",)


@pytest.mark.parametrize("length", range(1, 40))
def test_no_length_cuts_into_image_tokens(processor, tmp_path, length):
    """Image tokens after the system's words too: all of them or no row."""
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    qwen = tiny_qwen.processor()
    for of, more in ((processor, {}), (qwen, {"template": "chatml"}), (qwen, {"template": "qwen2_base"})):
        data = conversations(of, tmp_path, row, image_tokens=4, max_length=length, **more)
        with suppress(Fault):
            tokens = data._build(0).input_ids
            assert len(tokens) <= length
            assert (tokens == of.tokenizer.convert_tokens_to_ids("<image>")).sum() == 4


def test_what_a_recipe_may_ask_of_the_playground_is_what_there_is():
    hints = get_type_hints(playground)
    assert set(get_args(hints["kind"])) == {*KINDS, "preferences"}
    assert set(get_args(hints["split"])) == set(SPLITS)


LONG = ("How many?", "dog " * 40)


def test_a_row_longer_than_a_model_s_positions_is_unusable_and_says_both_values(processor, tmp_path):
    most = {"student": 64, "teacher": 32}
    data = conversations(processor, tmp_path, tiny.row("r", None, LONG), max_faults=0.5, positions=most)
    with pytest.raises(UserError) as refused:
        data.inspect()
    assert refused.value.problems[0] == (
        "rows: row 0: r: 47 tokens, the student is made for 64, the teacher is made for 32 (max_length: 32 would cut it)"
    )
    cut = conversations(processor, tmp_path, tiny.row("r", None, LONG), max_length=32, positions=most)
    cut.inspect()
    assert len(cut[0].input_ids) == 32


def test_independent_turns_take_the_positions_of_the_longest_alone(processor, tmp_path):
    """Each goes on from the end of the image."""
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *[("How many?", "dog")] * 9)
    chained, independent = (
        conversations(processor, tmp_path, row, turns=turns, positions={"student": 12})
        for turns in ("chained", "independent")
    )
    with pytest.raises(Fault, match="tokens, the student is made for 12"):
        chained.text_example(0)
    example = independent.text_example(0)
    assert len(example.input_ids) > 12
    batch = tiny.collate([example], pad_token=0)
    assert int(batch.position.max()) < 12
    with pytest.raises(Fault, match=f"{int(batch.position.max()) + 1} tokens, the student is made for"):
        conversations(
            processor, tmp_path, row, turns="independent", positions={"student": int(batch.position.max())}
        ).text_example(0)
