"""What rows hold besides their text: honoured, refused with a reason, or counted and shown once."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from switchkd_cli import cli
from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.cost import data_sample
from switchkd_cli.engine.cost.model_facts import KnownModel, describe_model
from switchkd_cli.engine.data import row_files, rows, sources
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Fault, Rows, survey_rows
from switchkd_cli.engine.data.sources import llava_json, messages
from switchkd_cli.engine.data.turns import llava_row, message_row
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import DataSet, Parts
from tests.support import tiny, tiny_qwen, tiny_run
from tests.support.square_inputs import SquareInputs

FORMS = {
    "llava_json": (llava_row, "conversations", "from", "value", "human", "gpt"),
    "messages": (message_row, "messages", "role", "content", "user", "assistant"),
}
PAIRS = (("Two?", "three"), ("How many?", "dog"))


def turn(form, speaker, text, **more):
    _, _, who, says, asks, answers = FORMS[form]
    return {who: asks if speaker == "ask" else answers if speaker == "answer" else speaker, says: text} | more


def row(form, *turns, **more):
    """Two exchanges, or these turns."""
    plain = [turn(form, speaker, text) for pair in PAIRS for speaker, text in zip(("ask", "answer"), pair, strict=True)]
    return {FORMS[form][1]: list(turns) or plain, **more}


def parsed(form, raw):
    return FORMS[form][0](raw)


def learnt(form, raw, turns="chained"):
    """The supervised words of the row's text."""
    processor = tiny_qwen.processor()
    data = Conversations(Rows([raw], FORMS[form][0], turns=turns), SquareInputs(processor, 2), template="qwen2_base")
    words = processor.tokenizer.convert_ids_to_tokens([i for i in data.text_example(0).labels if i != IGNORE])
    return "".join(words).replace("Ġ", " ").split("<|endoftext|>")[:-1]


def told(form, *raw):
    return list(survey_rows(raw, FORMS[form][0], None).note_lines())


both = pytest.mark.parametrize("form", FORMS)


# --- which answers are learnt

OFF = [("weight", 0), ("weight", 0.0), ("loss", False), ("train", False), ("training", False), ("trainable", False)]
OFF += [("loss_mask", 0), ("loss_weight", 0), ("loss_scale", 0.0), ("masked", True), ("masked", 1)]
ON = [("weight", 1), ("loss", True), ("train", True), ("masked", False), ("loss", None), ("weight", float("nan"))]


@both
@pytest.mark.parametrize("turns", ["chained", "independent"])
@pytest.mark.parametrize(("key", "value"), OFF)
def test_an_answer_that_is_not_to_be_learnt_is_read_only(form, turns, key, value):
    raw = row(form)
    raw[FORMS[form][1]][1][key] = value
    assert parsed(form, raw).exchanges == PAIRS
    assert learnt(form, raw, turns) == [" dog"]
    assert told(form, raw, raw, row(form)) == [f"seen, but not learnt: an answer with {key}: {value} (2 rows)"]


@both
@pytest.mark.parametrize(("key", "value"), ON)
def test_an_answer_of_full_weight_is_learnt(form, key, value):
    raw = row(form)
    raw[FORMS[form][1]][1][key] = value
    assert learnt(form, raw) == [" three", " dog"] and told(form, raw) == []


@both
@pytest.mark.parametrize("value", [0.5, -1, 2, "0", [0], {"a": 1}])
def test_any_other_weight_is_refused(form, value):
    raw = row(form)
    raw[FORMS[form][1]][1]["weight"] = value
    with pytest.raises(Fault, match="`weight` of a turn is 0 or 1, false or true, got "):
        parsed(form, raw)


@both
def test_a_question_is_never_learnt_whatever_its_keys_say(form):
    raw = row(form)
    raw[FORMS[form][1]][0] |= {"weight": 0, "loss": False, "masked": True}
    raw[FORMS[form][1]][2]["train"] = True
    assert learnt(form, raw) == [" three", " dog"]
    assert told(form, raw) == ["keys that are not read: train of a question (1 row)"]


@both
@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_an_empty_answer_is_not_learnt_and_the_others_are(form, turns):
    raw = row(form)
    raw[FORMS[form][1]][1][FORMS[form][3]] = " \n"
    assert learnt(form, raw, turns) == [" dog"]
    assert told(form, raw) == ["seen, but not learnt: an empty answer (1 row)"]


@both
def test_a_row_without_an_answer_to_learn_is_refused(form):
    turns = [turn(form, "ask", "Hi?"), turn(form, "answer", "", weight=0)] * 2
    with pytest.raises(Fault, match=r"no answer to learn: an answer with weight: 0, an empty answer$"):
        parsed(form, row(form, *turns))


# --- the system's text


@both
@pytest.mark.parametrize("speaker", ["system", "developer"])
def test_a_system_text_is_a_key_or_the_first_turn(form, speaker):
    turns = row(form)[FORMS[form][1]]
    first = turn(form, speaker, "Be brief.")
    assert parsed(form, row(form, system="Be brief.")).system == "Be brief."
    assert parsed(form, row(form, first, *turns)).system == "Be brief."
    assert parsed(form, row(form, first, *turns, system="Be brief.")).system == "Be brief."
    for nothing in (None, "", float("nan")):
        assert parsed(form, row(form, system=nothing)).system is None
    with pytest.raises(Fault, match="two system texts"):
        parsed(form, row(form, first, *turns, system="Be long."))
    with pytest.raises(Fault, match=f"turns must go .*, got .*{speaker}"):
        parsed(form, row(form, *turns, first))
    with pytest.raises(Fault, match="`system` is not text, got 7"):
        parsed(form, row(form, system=7))


@both
def test_a_system_text_stands_in_the_place_of_the_templates_own(form):
    processor = tiny_qwen.processor()
    data = Conversations(
        Rows([row(form, system="Be brief."), row(form)], FORMS[form][0]),
        SquareInputs(processor, 2),
        template="qwen2_base",
    )
    first, second = (processor.tokenizer.decode(data.text_example(i).input_ids) for i in range(2))
    assert first.startswith("Be brief. USER: Two?") and second.startswith("A chat between")


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_a_template_that_leaves_the_system_text_out_is_no_template_for_it(turns):
    """`pretrain` leaves the questions out too, and says so."""
    processor = tiny_qwen.processor()
    raw = row("messages", system=" Be brief. ")
    data = Conversations(Rows([raw], message_row, turns=turns), SquareInputs(processor, 2), template="pretrain")
    assert processor.tokenizer.decode(data.text_example(0).input_ids) == "three\ndog\n"
    data.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content[0].text }}|{% endfor %}"
    with pytest.raises(Fault, match="the chat template leaves out the system's text"):
        data.text_example(0)
    data.chat_template = "{% for m in messages %}{{ m.content[0].text | trim }}|{% endfor %}"
    assert "Be brief.|Two?|three|" in processor.tokenizer.decode(data.text_example(0).input_ids)


@both
def test_an_answer_before_the_first_question_is_counted(form):
    raw = row(form, turn(form, "answer", "Welcome!"), *row(form)[FORMS[form][1]])
    assert parsed(form, raw).exchanges == PAIRS
    assert told(form, raw) == ["left out: an answer before the first question (1 row)"]


# --- keys


@both
def test_keys_that_are_not_read_are_counted_and_reported_in_one_line(form, monkeypatch):
    raw = row(form, id="a", source="web", model="", width=0, metadata={"a": None})
    raw[FORMS[form][1]][0]["name"] = "Ann"
    assert told(form, raw, row(form, source="web")) == [
        "keys that are not read: source (2 rows), name of a turn (1 row), width (1 row)"
    ]
    assert told(form, *(row(form, **{f"key{i:02}": 1}) for i in range(14))) == [
        f"keys that are not read: {', '.join(f'key{i:02} (1 row)' for i in range(12))}, 2 others"
    ]
    monkeypatch.setattr(rows, "NOTED", 2)
    assert told(form, *(row(form, **{f"key{i % 5}": 1}) for i in range(10))) == [
        "keys that are not read: others, counted together (6 rows), key0 (2 rows), key1 (2 rows)"
    ]
    assert told(form, row(form, **{"\x1b[2J" + "x" * 500: 1}))[0].isprintable()


@both
@pytest.mark.parametrize("key", ["tools", "functions", "videos", "video", "audios"])
@pytest.mark.parametrize("where", ["row", "turn"])
def test_keys_that_change_what_a_row_means_are_refused(form, where, key):
    raw = row(form)
    (raw if where == "row" else raw[FORMS[form][1]][1])[key] = ["x"]
    with pytest.raises(Fault, match=f"`{key}` of a {where}: (only images can be used|function calls can't be written)"):
        parsed(form, raw)
    for nothing in (None, "", [], {}, [None], [{"name": None}], float("nan")):
        (raw if where == "row" else raw[FORMS[form][1]][1])[key] = nothing
        assert told(form, raw) == []


@both
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tool_calls", [{"function": {"name": "x"}}]),
        ("images", ["a.png"]),
        ("image", "a.png"),
        ("train_detail", [{"begin_offset": 0, "end_offset": 4, "train": False}]),
    ],
)
def test_keys_of_a_turn_that_can_not_be_honoured_are_refused(form, key, value):
    raw = row(form)
    raw[FORMS[form][1]][1][key] = value
    with pytest.raises(Fault, match=f"`{key}` of a turn: "):
        parsed(form, raw)


@both
@pytest.mark.parametrize("speaker", ["tool", "function", "observation", None, ["human"]])
def test_other_speakers_are_refused(form, speaker):
    with pytest.raises(Fault, match="turns must go .*; a conversation needs an answer, got "):
        parsed(form, row(form, turn(form, "ask", "Hi?"), turn(form, speaker, "{}"), turn(form, "answer", "ho")))


# --- images


def asked(form, *, text="<image>\nTwo?", **more):
    return row(form, turn(form, "ask", text), turn(form, "answer", "dog"), **more)


@both
@pytest.mark.parametrize(
    "named",
    [
        {"image": "a.png"},
        {"images": ["a.png"]},
        {"images": "a.png"},
        {"image": ["a.png"]},
        {"image": "a.png", "images": ["a.png"]},
        {"image": "a.png", "images": []},
        {"image": None, "images": [None, "a.png"]},
        {"image": {"bytes": None, "path": "a.png"}},
    ],
)
def test_one_image_may_be_named_in_many_ways(form, named):
    found = parsed(form, asked(form, **named))
    assert (found.images, found.exchanges, found.notes) == (("a.png",), (("Two?", "dog"),), ())
    with pytest.raises(Fault, match="<image> placeholders: 1, one in a question for each image; got none"):
        parsed(form, asked(form, text="Two?", **named))


@both
@pytest.mark.parametrize(
    "nothing", [None, "", [], float("nan"), {"bytes": None, "path": None}, [{"bytes": None, "path": None}], [""]]
)
@pytest.mark.parametrize("key", ["image", "images"])
def test_an_image_may_be_said_to_be_none_in_many_ways(form, key, nothing):
    assert parsed(form, row(form, **{key: nothing})).images == ()
    with pytest.raises(Fault, match="<image> placeholders: none, as the row has no image; got 1 in turn 1"):
        parsed(form, asked(form, **{key: nothing}))


@both
@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ({"images": ["a.png", "b.png"]}, "<image> placeholders: 2, one in a question for each image; got 1 in turn 1"),
        ({"image": ["a.png", "b.png"]}, "<image> placeholders: 2, one in a question for each image; got 1 in turn 1"),
        (
            {"image": "a.png", "images": ["b.png"]},
            "<image> placeholders: 2, one in a question for each image; got 1 in turn 1",
        ),
        ({"images": [7]}, "an image is named by one path, got 7"),
        ({"images": [["a.png"]]}, "an image is named by one path, got ['a.png']"),
        ({"image": {"uri": "a.png"}}, "an image is named by one path, got {'uri': 'a.png'}"),
        ({"image": {"bytes": "aGk=", "path": None}}, "an image is named by one path, got {'bytes'"),
    ],
)
def test_more_images_than_placeholders_or_other_ways_to_name_one_are_refused(form, named, fault):
    with pytest.raises(Fault) as refused:
        parsed(form, asked(form, **named))
    assert str(refused.value).startswith(fault)


@both
@pytest.mark.parametrize(
    ("questions", "expected", "places"),
    [
        (("<image>\n<image>\nTwo?", "How many?"), ("Two?", "How many?"), ()),
        (("Two?\n<image>", "<image>\nHow many?"), ("Two?", "How many?"), ((0, 4), (1, 0))),
        (("Two?", "How <image><image> many?"), ("Two?", "How  many?"), ((1, 4), (1, 4))),
        (("A: <image>\nB: <image>\nTwo?", "?"), ("A: \nB: \nTwo?", "?"), ((0, 3), (0, 7))),
    ],
)
def test_images_stand_where_their_placeholders_are(form, questions, expected, places):
    turns = [turn(form, who, text) for q in questions for who, text in (("ask", q), ("answer", "dog"))]
    found = parsed(form, row(form, *turns, images=["a.png", "b.png"]))
    assert [question for question, _ in found.exchanges] == list(expected)
    assert (found.images, found.places) == (("a.png", "b.png"), places)


@both
def test_an_image_may_be_asked_about_in_a_later_turn_and_be_shown_twice(form):
    turns = [turn(form, who, f"{text}{i}") for i in range(2) for who, text in (("ask", "<image>" * i), ("answer", "a"))]
    found = parsed(form, row(form, *turns, image="a.png"))
    assert (found.images, found.places) == (("a.png",), ((1, 0),))
    twice = parsed(form, asked(form, text="<image><image>?", images=["a.png", "a.png"]))
    assert (twice.images, twice.places) == (("a.png", "a.png"), ())


def test_images_are_written_where_they_stand():
    processor = tiny_qwen.processor()
    raw = row("messages", turn("messages", "ask", "A: <image> B: <image>?"), turn("messages", "answer", "dog"))
    rows = Rows([raw | {"images": ["a", "b"]}], message_row, images=Path())
    data = Conversations(rows, SquareInputs(processor, 2), template="chatml")
    text = processor.tokenizer.decode(data.text_example(0).input_ids)
    assert "A: <image><image>" in text and "B: <image><image>" in text and text.count("<image>") == 4
    independent = Rows([raw | {"images": ["a", "b"]}], message_row, images=Path(), turns="independent")
    with pytest.raises(Fault, match="independent turns share only images in front of the first question"):
        Conversations(independent, SquareInputs(processor, 2), template="chatml").text_example(0)


def test_a_template_that_leaves_an_image_out_makes_a_row_unusable():
    inputs = SquareInputs(tiny_qwen.processor(), 2)
    inputs.processor.chat_template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
    rows = Rows([asked("messages", images=["a.png"])], message_row, images=Path())
    with pytest.raises(Fault, match="the chat template writes 0 of 1 images"):
        Conversations(rows, inputs).text_example(0)


@both
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png", "text": None},
        {"image": "a.png"},
    ],
)
def test_a_part_may_name_the_image(form, part):
    raw = asked(form, text=[part, {"type": "text", "text": "Two?", "image": None}], images=["a.png"])
    assert parsed(form, raw).images == ("a.png",) and told(form, raw) == told(form, asked(form, images=["a.png"]))
    with pytest.raises(Fault, match="<image> placeholders: "):
        parsed(form, raw | {"images": ["b.png"] if "path" in part or "image" in part else []})


@both
@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ({"type": "file", "file": {"file_id": "a"}}, "a part of a turn is text or image, got file"),
        ({"type": "audio", "text": "Two?"}, "a part of a turn is text or image, got audio"),
        ({"type": "text", "text": "Two?", "image": "a.png"}, "`image` of a part: "),
        ({"type": "text", "text": None}, "is not text"),
        ({}, "is not text"),
    ],
)
def test_parts_of_other_kinds_are_refused(form, part, fault):
    with pytest.raises(Fault) as refused:
        parsed(form, asked(form, text=[part]))
    assert fault in str(refused.value)


@both
def test_keys_of_parts_are_counted_too(form):
    raw = asked(form, text=[{"type": "text", "text": "Two?", "index": 0, "cache_control": {"type": "x"}}])
    assert told(form, raw) == ["keys that are not read: cache_control of a part (1 row), index of a part (1 row)"]


# --- parquet gives every row every key


def parquet(tmp_path, *raw, **more):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(raw)), file, **more)
    found = llava_json(tmp_path / "cache", file=str(file), images=str(tmp_path))
    assert [bool(row.images) for row in map(found.__getitem__, range(len(raw)))] == found.survey.image_mask.tolist()
    assert found.survey.faults == ()
    return found


def test_keys_of_other_rows_are_none_of_this_row(tmp_path):
    rich = row("llava_json", system="Be brief.", width=3, tools=[{"name": None}])
    rich["conversations"][1]["weight"] = 0
    found = parquet(tmp_path, rich, row("llava_json"))
    assert (found[0].system, found[0].unlearnt) == ("Be brief.", {0})
    assert (found[1].system, found[1].unlearnt, found[1].notes) == (None, frozenset(), ())


NONE = {"bytes": None, "path": None}


@pytest.mark.parametrize("text", [None, NONE])
@pytest.mark.parametrize("shape", ["image", "images"])
@pytest.mark.parametrize("group", [1, 2, 1000])
@pytest.mark.parametrize("statistics", [True, False])
def test_text_rows_among_embedded_pictures(tmp_path, text, shape, group, statistics):
    picture = (tmp_path / tiny.picture(tmp_path, "a.png", 1)).read_bytes()
    named = [
        text,
        {"bytes": picture, "path": None},
        {"bytes": None, "path": "a.png"},
        text,
        {"bytes": picture, "path": "x"},
    ]
    if shape == "images":
        named = [[] if one is None else [one] for one in named]
    raw = [
        asked("llava_json", text="Two?" if i in (0, 3) else "<image>Two?", **{shape: one})
        for i, one in enumerate(named)
    ]
    found = parquet(tmp_path, *raw, row_group_size=group, write_statistics=statistics)
    assert [found[i].images for i in range(5)] == [(), (picture,), ("a.png",), (), (picture,)]


def test_a_column_of_bytes_alone(tmp_path):
    found = parquet(tmp_path, row("llava_json", image={"bytes": None}), asked("llava_json", image={"bytes": b"x"}))
    assert found[1].images == (b"x",)


def test_pictures_stay_in_the_file_where_all_of_a_group_have_theirs(tmp_path, monkeypatch):
    """Text rows are null, pictures have bytes: reading a hundred gigabytes to see that would take minutes."""
    monkeypatch.setattr(row_files, "IMAGE_BLOCK", None)  # what is read with the pictures can't be read
    raw = [row("llava_json", image=None), asked("llava_json", image={"bytes": b"x", "path": None})]
    parquet(tmp_path, *raw)
    with pytest.raises(TypeError):
        parquet(tmp_path, *raw, row("llava_json", image=NONE))


# --- where it is told


def test_notes_are_kept_with_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHED_ROWS", 1)
    raw = row("messages", id="a", source="web")
    raw["messages"][1]["weight"] = 0
    (tmp_path / "rows.json").write_text(json.dumps([raw]))
    first, again = (messages(tmp_path / "cache", file=str(tmp_path / "rows.json")).survey for _ in range(2))
    assert first.notes == again.notes and len(list(again.note_lines())) == 2


def test_rows_that_are_cut_are_counted(tmp_path):
    raw = [tiny.row(name, None, *pairs) for name, pairs in (("a", PAIRS), ("b", PAIRS[:1]))]
    of = tiny.model().inputs.processor
    for length, cut in ((17, 1), (2000, 0)):
        data = Conversations(Rows(raw, llava_row), SquareInputs(of, 2), max_length=length)
        data.inspect()
        assert data.notes == [f"cut: 1 of 2 rows checked are longer than max_length ({length:,} tokens)"] * cut


def told_by_the_program(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["switchkd", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    return ended.value.code, shown.out, shown.err


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe whose rows have a key that nobody reads, an empty answer, and one row that can't be used."""
    monkeypatch.chdir(tmp_path)
    raw = [each | {"source": "web"} for each in tiny.rows(tmp_path)]
    raw[2]["conversations"][1]["value"] = ""
    raw[3]["images"] = ["a.png", "d.png"]
    return lambda faults, raw=raw: tiny_run.write(
        tmp_path,
        teacher=False,
        rows=raw,
        data={
            "rows": {
                "source": "llava_json",
                "max_faults": faults,
                "parameters": {"file": str(tmp_path / "rows.json"), "images": str(tmp_path)},
            }
        },
    )


NOTES = [
    "rows: seen, but not learnt: an empty answer (1 row)",
    "rows: keys that are not read: source (3 rows)",
    (
        "rows: can't be used (another row stands in): 1 of 4 rows so far, the first: row 3: d: "
        "<image> placeholders: 2, one in a question for each image; got 1 in turn 1"
    ),
]


def test_a_dry_run_reports_what_training_would(recipe, monkeypatch, capsys):
    code, out, _ = told_by_the_program(monkeypatch, capsys, "distill", recipe(0.5), "--dry-run")
    assert code == 0 and [line[9:] for line in out.splitlines() if line.startswith("note     rows: ")] == NOTES


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_what_training_would_refuse_a_dry_run_refuses(recipe, monkeypatch, capsys, dry):
    code, out, err = told_by_the_program(monkeypatch, capsys, "distill", recipe(0.1), *dry)
    assert (
        code == 2
        and "rows.json: row 3: d: <image> placeholders: 2, one in a question for each image" in err
        and "download" not in out
    )
    assert "25.0% of the rows can't be used; nothing was trained (max_faults: 10.0%)" in err


def test_a_dry_run_without_a_row_to_look_at_is_refused(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_sample, "SAMPLE_SIZE", 1)
    codes = []
    for raw in (("", "dog"), ("dog", "")):
        file = recipe(0.5, [tiny.row("a", "a.png", ("What?", answer)) for answer in raw])
        code, out, err = told_by_the_program(monkeypatch, capsys, "distill", file, "--dry-run")
        codes.append(code)
        assert ("rows: a sample of 1 rows" in out) == (code == 0)
        assert ("rows.json: none of 1 rows that were looked at can be used" in err) == (code == 2)
    assert sorted(codes) == [0, 2]


def test_rows_of_a_model_that_is_not_here_are_reported_too(recipe, tmp_path):
    """Its tokenizer is not here: nothing can be cut or refused by a template, the rows' own faults are seen."""
    parts = Parts(family="llava", vision="google/siglip-so400m-patch14-384", language="Qwen/Qwen2.5-0.5B")
    away = describe_model(parts, "student", {})
    assert isinstance(away, KnownModel) and away.blueprint is None
    recipe(0.5)
    parameters = {"file": str(tmp_path / "rows.json"), "images": str(tmp_path)}
    for faults in (0.5, 0.1):
        spec = DataSet(source="llava_json", parameters=parameters, max_faults=faults)
        with nullcontext() if faults == 0.5 else pytest.raises(UserError, match="row 3: d: <image> placeholders"):
            sample = data_sample.sample_data(spec, away, tmp_path / "runs", tmp_path)
    assert [f"rows: {note}" for note in sample.notes] == NOTES and len(sample.lengths) == 3


@pytest.mark.slow
def test_a_run_reports_it_once_and_keeps_it(recipe, tmp_path, monkeypatch, capsys):
    code, _, err = told_by_the_program(monkeypatch, capsys, "distill", recipe(0.5))
    assert code == 0 and [err.count(note) for note in NOTES] == [1, 1, 1]
    logged = tiny_run.trace(tmp_path / "runs" / "tiny" / "switch-kd" / "seed0")
    assert [entry["text"] for entry in logged if entry.get("event") == "rows"] == NOTES


@pytest.mark.parametrize(
    ("of_row", "parts", "expected"),
    [
        (["a.png", "b.png"], ["b.png", "a.png"], ("b.png", "a.png")),
        (["a.png"], ["b.png", None], ("b.png", "a.png")),
        (["a.png", "b.png"], [None, "a.png"], ("b.png", "a.png")),
        ([], ["b.png", "b.png"], ("b.png", "b.png")),
        (["a.png", "b.png"], [None, None], ("a.png", "b.png")),
    ],
)
def test_each_question_shows_the_image_that_its_part_names(of_row, parts, expected):
    turns = []
    for name in parts:
        image = {"type": "image"} | ({"image": name} if name else {})
        turns += [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
        turns += [{"role": "assistant", "content": "a dog"}]
    row = message_row({"images": of_row, "messages": turns})
    assert row.images == expected and row.places == ((0, 0), (1, 0))
