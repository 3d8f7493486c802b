"""Masks, the label shift, and turns that share one picture."""

import pytest
import torch

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.paths import Paths
from tests.support import tiny


@pytest.fixture(scope="module")
def student():
    return tiny.model(seed=1)


def said(student, batch, on):
    """The tokens that the positions predict, as text, row by row, without the space that a word after a marker has."""
    following = torch.roll(batch.input_ids, -1, dims=1)
    return [
        student.inputs.processor.tokenizer.decode(tokens[chosen]).replace("> ", ">")
        for tokens, chosen in zip(following, batch.predicting(on), strict=True)
    ]


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_answer_positions_predict_the_answers_and_their_end(student, tmp_path, turns):
    batch = tiny.batch(student, tmp_path, turns)
    assert said(student, batch, "answer") == [
        "dog<|end|>three red apples<|end|>",
        "hi there<|end|>",
        "at the top left<|end|>no<|end|>a cat<|end|>",
        "a bus<|end|>",
    ]


def test_text_positions_leave_out_image_tokens_and_padding(student, tmp_path):
    batch = tiny.batch(student, tmp_path)
    assert said(student, batch, "text")[3] == "<|user|>What is it?<|assistant|>a bus<|end|>"
    assert said(student, batch, "text")[1] == "Say hi.<|assistant|>hi there<|end|>"  # nothing predicts a first token


def test_all_positions_are_every_step_inside_the_row(student, tmp_path):
    batch = tiny.batch(student, tmp_path)
    assert batch.predicting("all").sum(1).tolist() == (batch.turn >= 0).sum(1).sub(1).tolist()


def test_independent_turns_never_predict_across_their_border(student, tmp_path):
    batch = tiny.batch(student, tmp_path, "independent")
    assert said(student, batch, "text")[0] == (
        "<|user|>What is it?<|assistant|>dog<|end|>How many?<|assistant|>three red apples<|end|>"
    )


def test_targets_are_labels_shifted_by_one(student, tmp_path):
    batch = tiny.batch(student, tmp_path)
    for b, t in batch.predicting("answer").nonzero():
        assert batch.targets[b, t] == batch.input_ids[b, t + 1] == batch.labels[b, t + 1]
    assert (batch.targets[~batch.predicting("answer")] == IGNORE).all()


def test_independent_turns_equal_rows_of_their_own(student, tmp_path):
    shared = tiny.rows(tmp_path)[2]
    exchanges = [("Where?", "at the top left"), ("Yes?", "no"), ("What?", "a cat")]
    apart = [tiny.row(str(i), shared["image"], exchange) for i, exchange in enumerate(exchanges)]
    paths = Paths(student, None, len(student.inputs.processor.tokenizer))
    results = []
    for rows, turns in (([shared], "independent"), (apart, "chained")):
        batch = tiny.batch(student, tmp_path, turns, rows)
        results.append(paths(batch, {"student"}, batch.predicting("answer"))["student"])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing(student, tmp_path):
    rows = tiny.rows(tmp_path)
    paths = Paths(student, None, len(student.inputs.processor.tokenizer))
    for turns in ("chained", "independent"):
        alone = tiny.batch(student, tmp_path, turns, rows[3:])
        padded = tiny.batch(student, tmp_path, turns, rows)
        ours = padded.predicting("answer") & (torch.arange(4) == 3)[:, None]
        torch.testing.assert_close(
            paths(alone, {"student"}, alone.predicting("answer"))["student"],
            paths(padded, {"student"}, ours)["student"],
            rtol=1e-5,
            atol=1e-6,
        )
