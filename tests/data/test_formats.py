"""Formats of rows as data: what other tools export is read by naming its keys, and what can't be expressed is refused."""

from base64 import b64encode

import pytest

from switchkd_cli.engine.data.rows import Fault, Row, survey_rows
from switchkd_cli.engine.data.turns import form
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load
from switchkd_cli.registry import FORMATS
from tests.support import small_recipe

PNG = b"\x89PNG, or what stands for it"
URI = "data:image/png;base64," + b64encode(PNG).decode()


def turns(speaker, text, *said):
    return [{speaker: who, text: what} for who, what in said]


EXPORTED = {
    "llava": {"image": "a.png", "conversations": turns("from", "value", ("human", "<image>\nTwo?"), ("gpt", "three"))},
    "messages": {
        "images": ["a.png"],
        "messages": turns("role", "content", ("user", "<image>Two?"), ("assistant", "three")),
    },
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "Two?"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "three"}]},
        ]
    },
    "sharegpt": {
        "images": ["a.png"],
        "conversations": turns("from", "value", ("user", "<image>Two?"), ("chatgpt", "three")),
    },
    "alpaca": {"instruction": "<image>Two?", "input": "", "output": "three", "images": ["a.png"], "history": []},
    "ms_swift": {"images": ["a.png"], "messages": turns("role", "content", ("user", "Two?"), ("assistant", "three"))},
    "ms_swift_pairs": {"images": ["a.png"], "conversation": [{"human": "<image>Two?", "assistant": "three"}]},
    "ms_swift_query": {"images": ["a.png"], "query": "Two?", "response": "three"},
}


@pytest.mark.parametrize("name", [name for name in FORMATS if not FORMATS[name].get("rejected") or name == "ms_swift"])
def test_the_same_row_in_every_format(name):
    assert form(name).row(EXPORTED[name]) == Row("", (("Two?", "three"),), ("a.png",))
    assert form(name).keys.rows


def test_a_format_of_a_recipe_s_own():
    own = {"turns": "texts", "question": ["user"], "answer": "assistant", "id": "key", "placeholder": "optional"}
    raw = {
        "key": 3,
        "images": [{"bytes": PNG, "path": None}],
        "texts": [{"user": "A?", "assistant": "b", "source": "s"}] * 2,
    }
    assert form(own).row(raw) == Row(
        "3", (("A?", "b"),) * 2, (PNG,), notes=(("keys that are not read", "source of a turn"),)
    )
    said = {"says": [{"who": "me", "what": "A?"}, {"who": "it", "what": "b"}], "about": "Be brief."}
    own = {
        "turns": "says",
        "speaker": "who",
        "text": "what",
        "asks": ["me"],
        "answers": ["it", "bot"],
        "system": "about",
    }
    assert form(own).row(said) == Row("", (("A?", "b"),), system="Be brief.")


def test_questions_are_joined_and_earlier_exchanges_come_first():
    raw = {"instruction": "Add.", "input": "1 + 1", "output": "2", "history": [["Hi.", "Ho."]], "system": "Be brief."}
    assert form("alpaca").row(raw) == Row("", (("Hi.", "Ho."), ("Add.\n1 + 1", "2")), system="Be brief.")
    assert form({"answer": "txt"}).row({"txt": "a dog"}).exchanges == (("", "a dog"),)


def test_an_answer_in_a_pair_may_be_one_not_to_learn():
    raw = {"conversation": [{"human": "A?", "assistant": "b", "loss": False}, {"human": "C?", "assistant": "d"}]}
    assert form("ms_swift_pairs").row(raw).unlearnt == {0}


def openai(*images):
    said = [{"type": "image_url", "image_url": image} for image in images] + [{"type": "text", "text": "A?"}]
    return {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "b"}]}


def test_an_image_may_be_a_data_uri():
    assert form("openai").row(openai({"url": URI})).images == (PNG,)
    assert form("openai").row(openai(URI)).images == (PNG,)
    assert form("openai").row(openai(URI, URI)).images == (PNG, PNG)
    assert form("ms_swift").row(EXPORTED["ms_swift"] | {"images": [URI]}).images == (PNG,)
    survey = survey_rows([openai({"url": URI, "detail": "low"})], form("openai").row, None)
    assert survey.faults == () and survey.image_names == []
    assert list(survey.note_lines()) == ["keys that are not read: detail of a part (1 row)"]


@pytest.mark.parametrize(
    ("name", "raw", "fault"),
    [
        (
            "openai",
            openai("https://example.org/a.png"),
            "an image is a path or a data URI in base64, and is never fetched, got https",
        ),
        ("openai", openai("data:image/png,abc"), "a data URI in base64"),
        ("openai", openai("data:image/png;base64,?"), "a data URI in base64"),
        ("ms_swift", EXPORTED["ms_swift"] | {"objects": {"bbox": [[1, 2, 3, 4]]}}, "`objects` of a row: boxes"),
        ("ms_swift", EXPORTED["ms_swift"] | {"rejected_response": ["a", "b"]}, "a turn's content is not text"),
        (
            "alpaca",
            EXPORTED["alpaca"] | {"instruction": "Two?"},
            "<image> placeholders: 1, one in a question for each image",
        ),
        ("alpaca", {"instruction": "Two?", "input": 3, "output": "b"}, "instruction and input are not text"),
        ("alpaca", {"instruction": "Two?", "output": "b", "history": ["Hi."]}, "`history` is not a list of pairs"),
        ("alpaca", {"instruction": "Two?"}, "a turn's output is not text"),
        ("ms_swift_pairs", {"conversation": "Two?"}, "no `conversation` list"),
        ("ms_swift_query", ["Two?"], "not a mapping with `response`"),
        (
            "sharegpt",
            {"conversations": turns("from", "value", ("human", "A?"), ("observation", "b"))},
            "turns must go human",
        ),
        ("sharegpt", {"conversations": turns("from", "value", ([], "A?"), ("gpt", "b"))}, "turns must go human, gpt"),
    ],
)
def test_what_a_format_can_t_express_is_refused(name, raw, fault):
    with pytest.raises(Fault) as refused:
        form(name).row(raw)
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("format", "problem"),
    [
        ("sharegtp", "format: unknown format, got 'sharegtp' (did you mean 'sharegpt'?)"),
        ("{turns: t, speker: s, text: x}", "format.speker: unknown key, got 'speker' (did you mean 'speaker'?)"),
        ("{turns: t, speaker: s}", "format: must name either `turns`, `speaker` and `text`, or `answer`"),
        ("{turns: t, speaker: s, text: x, answer: a}", "format: must name either `turns`"),
        ("{answer: a, question: q}", "format.question: must be a list, got 'q'"),
        ("{answer: a, placeholder: no}", "format.placeholder: must be one of required, optional"),
        ("3", "format: must be text or must be a mapping, got 3"),
    ],
)
def test_a_wrong_format_is_a_problem_of_the_recipe(tmp_path, format, problem):
    recipe = small_recipe.write(tmp_path)
    text = recipe.read_text().replace(
        "source: llava_json, parameters: {", f"source: files, parameters: {{format: {format}, ", 1
    )
    recipe.write_text(text)
    with pytest.raises(UserError) as refused:
        load(recipe)
    (line,) = refused.value.problems
    assert f"data.captions.parameters.{problem}" in line and line.split(":")[1].isdigit()
