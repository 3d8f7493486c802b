"""Answers as two tokenizers' tokens: where each token ends, and the spans of bytes that both end together."""

import os
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.data.byte_spans import covered, number_spans, places, token_bytes, token_ends
from switchkd_cli.engine.data.conversation import OF_TEACHER, Conversations
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.turns import llava_row
from tests.support import tiny, unlike

KINDS = ("bpe", "bytes", "words", "pieces")
kinds = st.sampled_from([*KINDS, "playground"])
letters = st.sampled_from("ab e.\t\n 狗好🙂👍🏽é") | st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
texts = st.text(letters, min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<" not in text and "#" not in text
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {kind: unlike.model(tmp_path_factory.mktemp(kind), unlike.tokenizer(kind)) for kind in KINDS}
    return made | {"playground": tiny.model()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["three red dogs", "你好 🙂👍🏽", " a  b\n\nc é", "x"])
def test_tokens_end_where_their_bytes_do(kind, text):
    tokenizer = unlike.tokenizer(kind)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spelled, ids = token_bytes(tokenizer), encoding["input_ids"]
    ends = token_ends([spelled[id] for id in ids], text, encoding["offset_mapping"])
    assert ends[-1] == len(text.encode())
    known = [end for end in ends if end is not None]
    assert known == sorted(known)
    if kind in ("bpe", "bytes"):  # they leave nothing out, and change nothing
        assert [text.encode()[a:b] for a, b in pairwise([0, *ends])] == [spelled[id] for id in ids]


def example_of(student, teacher, *answers, **how):
    rows = [tiny.row("r", None, *(("Say it.", answer) for answer in answers))]
    return unlike.conversations(student, teacher, rows, None, **how).text_example(0)


@given(student=kinds, teacher=kinds, answers=st.lists(texts, min_size=1, max_size=3))
@example(student="bpe", teacher="pieces", answers=["你好，狗🙂", "dogs"])
@example(student="words", teacher="bytes", answers=["🙂👍🏽 é", "a b"])
def test_spans_cover_all_bytes_of_every_answer_and_both_ends(student, teacher, answers, models):
    student, teacher = models[student], models[teacher]
    made = example_of(student, teacher, *answers)
    covered, size = made.aligned.tolist()
    assert covered == size == sum(len(answer.strip().encode()) for answer in answers)
    assert set(made.spans.tolist()) == set(made.others[OF_TEACHER].spans.tolist()) != {-1}
    for side, of in ((made, student), (made.others[OF_TEACHER], teacher)):
        learnt = side.labels != IGNORE
        assert (side.spans[learnt] >= 0).all() and (side.spans[~learnt] == -1).all()
        assert side.spans[learnt].diff().ge(0).all()
        end = of.inputs.tokenizer.eos_token_id  # it is learnt once for each answer
        assert (side.labels == end).sum() == len(answers)


@given(kind=kinds, answers=st.lists(texts, min_size=1, max_size=3))
def test_one_tokenizer_on_both_sides_gives_a_span_to_every_token(kind, answers, models):
    """Of the words' tokenizer, which can't tell unknown characters apart, too: it has one token for each run of them."""
    of = models[kind]
    made = example_of(of, of, *answers)
    spans = made.spans[made.labels != IGNORE].tolist()
    if kind != "playground":  # its normalizer changes some texts, so that some tokens share characters
        assert spans == list(range(len(spans)))
    assert made.spans.tolist() == made.others[OF_TEACHER].spans.tolist()


exact = st.sampled_from(["bpe", "bytes"])


@given(student=exact, teacher=exact, answer=texts)
def test_a_span_is_the_same_bytes_on_both_sides(student, teacher, answer, models):
    student, teacher = models[student], models[teacher]
    made = example_of(student, teacher, answer)
    spelled = []
    for side, of in ((made, student), (made.others[OF_TEACHER], teacher)):
        known = token_bytes(of.inputs.tokenizer)
        by_span = {}
        for id, span in zip(side.input_ids.tolist(), side.spans.tolist(), strict=True):
            by_span[span] = by_span.get(span, b"") + known[id]
        spelled.append([by_span[span] for span in sorted(by_span) if span >= 0][:-1])
    assert spelled[0] == spelled[1]


def test_other_template_text_between_an_answer_and_its_end_joins_the_end():
    text = slice(0, 3)
    ours = places(0, [3, 4, 9], b"dog\n<end>", text, ended=True)
    theirs = places(0, [1, 3, 4, 8], b"dog </s>", text, ended=True)
    assert number_spans(ours, theirs) == ([0, 1, 1], [0, 0, 1, 1])
    assert number_spans(ours, ours) == ([0, 1, 2], [0, 1, 2])


def test_what_a_template_writes_before_an_answer_is_no_byte_of_it():
    """Two bytes before the text, after which `max_length` cuts."""
    cut = places(0, [1, 2], b"> dog", slice(2, 5), ended=False)
    assert covered(cut, [0, 0], [3]) == 0


def test_what_max_length_cuts_from_one_side_is_in_no_span_of_the_other(models):
    student, teacher = models["bytes"], models["bpe"]
    whole = example_of(student, teacher, "three red apples")
    first = int((whole.labels != IGNORE).nonzero()[0])
    made = example_of(student, teacher, "three red apples", max_length=first + 6)  # "three "
    assert made.aligned.tolist() == [5, 16]
    assert made.spans.max() == made.others[OF_TEACHER].spans.max() >= 0
    assert (made.others[OF_TEACHER].spans[made.others[OF_TEACHER].labels != IGNORE] == -1).any()


def test_an_answer_that_a_template_changes_is_named(models):
    student, teacher = models["bytes"], models["bpe"]
    rows = [tiny.row("r", None, ("Say it.", "three dogs"))]
    data = unlike.conversations(student, teacher, rows, None)
    theirs = data.others[OF_TEACHER]
    theirs.chat_template = theirs.chat_template.replace("else p.text", "else p.text | upper")
    with pytest.raises(Exception, match="the chat template changes the text of an answer"):
        data.text_example(0)


def test_a_data_set_without_a_second_reader_has_no_spans(models):
    of = models["bpe"]
    alone = Conversations(Rows([tiny.row("r", None, ("a", "b"))], llava_row), of.inputs).text_example(0)
    assert (alone.spans, alone.others, alone.aligned) == (None, {}, None)


VOCABULARIES = os.environ.get("SWITCHKD_GGUF_VOCABULARIES")


@pytest.mark.skipif(
    not VOCABULARIES,
    reason="SWITCHKD_GGUF_VOCABULARIES: a folder with ggml-vocab-{qwen2,phi-3}.gguf of llama-cpp-python's sdist; needs gguf",
)
def test_spans_of_real_tokenizers_cover_all_bytes():
    """Byte-level BPE with NFC, and SentencePiece with single bytes; reading the two takes minutes."""
    names = ("qwen2", "phi-3")
    read = [AutoTokenizer.from_pretrained(VOCABULARIES, gguf_file=f"ggml-vocab-{name}.gguf") for name in names]
    for text in ("three red apples.", "你好，狗🙂👍🏽！", "é e\u0301  two\n\ttabs", "ﬁ ½ 한국어 العربية"):
        written, found = text.encode(), []
        for tokenizer in read:
            spelled, encoding = (
                token_bytes(tokenizer),
                tokenizer(text, add_special_tokens=False, return_offsets_mapping=True),
            )
            ends = token_ends([spelled[id] for id in encoding["input_ids"]], text, encoding["offset_mapping"])
            found.append(places(0, [*ends, None], written, slice(0, len(written)), ended=True))
        spans, others = number_spans(*found)
        assert covered(found[0], spans, [len(written)]) == len(written) and min(spans + others) == 0
