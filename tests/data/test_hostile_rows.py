"""Rows and data files that were made to do harm, or broken at random: refused with the file, or a counted skip."""

import copy
import json
import os
import random
import re

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from switchkd_cli.engine.data import sources
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import LONGEST, Fault, Rows, short_repr
from switchkd_cli.engine.data.sources import llava_json, messages
from switchkd_cli.engine.data.turns import IMAGE, llava_row
from switchkd_cli.errors import INPUT, UNPRINTABLE, UserError
from tests.support import tiny, tiny_qwen
from tests.support.places import places
from tests.support.square_inputs import SquareInputs

ROWS_CHANGED, FILES_SCRAMBLED = 1000, 150
SEED = 5

VALUES = [
    *(None, True, 0, -1, 10**30, 0.5, float("nan"), float("inf"), "", " ", "x", "\x00", "\x1b[31mred", "a\nb"),
    *("\ud800", "\udcff", "é\u202e", "x" * 300, "../a.png", "/etc/passwd", "c.png/..", ".", "/dev/zero", "~/a.png"),
    *(IMAGE, f"{IMAGE}\n{IMAGE}", "<|end|>", "<|user|>", "<|im_end|>", "human", "gpt", "user"),
    *("assistant", "system", "[bold]", "{{ 7 * 7 }}", [], {}, [[]], ["a.png", "c.png"], {"bytes": "x"}, {"path": ".."}),
]  # fmt: skip


@pytest.fixture(scope="module")
def student():
    return tiny.model()


def as_messages(row):
    roles = {"human": "user", "gpt": "assistant"}
    said = [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
    return {"id": row["id"], "messages": said, "images": [row["image"]] if "image" in row else []}


FORMS = {"llava_json": (llava_json, lambda row: row), "messages": (messages, as_messages)}


def mutated(row, chance):
    """The row with one or two of its places changed, dropped, renamed, doubled or put into a text."""
    for _ in range(chance.randint(1, 2)):
        inner = [at for at in places(row) if at]
        if not inner:
            return chance.choice(VALUES)
        *parents, last = chance.choice(inner)
        target = row
        for step in parents:
            target = target[step]
        match chance.randrange(6):
            case 0:
                del target[last]
            case 1 if isinstance(target, dict):
                target[str(chance.choice(VALUES))] = target.pop(last)
            case 2 if isinstance(target, list):
                target.append(copy.deepcopy(target[last]))
            case 3 if isinstance(target[last], str):
                at = chance.randrange(len(target[last]) + 1)
                target[last] = f"{target[last][:at]}{chance.choice(VALUES)}{target[last][at:]}"
            case _:
                target[last] = copy.deepcopy(chance.choice(VALUES))
    return row


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_hundreds_of_rows_with_other_values(student, tmp_path, form, ending):
    source, shape = FORMS[form]
    images = tmp_path / "pictures"
    images.mkdir()
    sound = [shape(row) for row in tiny.rows(images)]
    chance = random.Random(f"{form}{ending}{SEED}")
    raw = [mutated(copy.deepcopy(chance.choice(sound)), chance) for _ in range(ROWS_CHANGED // 4)]
    raw.append(shape(tiny.row("out", "../a.png", ("What?", "dog"))))
    file = tmp_path / f"rows.{ending}"
    text = "\n".join(map(json.dumps, raw)) if ending == "jsonl" else json.dumps(raw)
    file.write_text(text)
    before = sorted(tmp_path.rglob("*"))
    rows = source(tmp_path / "cache", file=str(file), images=str(images))
    data = Conversations(rows, student.inputs, max_faults=0.99)
    assert len(data) == len(raw)
    met = {}
    for index in range(len(data)):
        try:
            data._build(index)
        except Fault as fault:
            met[index] = fault.at(index)
    assert len(raw) / 10 < len(met) < len(raw)
    with pytest.raises(UserError) as stopped:
        data.inspect()
    assert stopped.value.code == INPUT
    told_of = "".join(stopped.value.problems)
    assert "image path leaves its folder" in told_of and "can't be used" not in told_of
    assert set(data.bad_rows.unusable) == set(met)
    data.bad_rows.write_to(tmp_path / "skipped.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text("utf-8").splitlines()]
    assert {line["row"]: line["fault"] for line in listed} == {row: m.fault for row, m in met.items()}
    for line in listed:
        assert not UNPRINTABLE.search(line["id"] + line["fault"]) and len(line["id"] + line["fault"]) < 1000
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "skipped.jsonl"])


@given(chance=st.randoms(use_true_random=False), form=st.sampled_from(sorted(FORMS)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mutation_of_a_row_is_a_fault_or_a_row(student, tmp_path, chance, form):
    """The same once more with hypothesis, which looks for what fails and makes it small."""
    source, shape = FORMS[form]
    images = tmp_path / "pictures"
    images.mkdir(exist_ok=True)
    changed = mutated(shape(chance.choice(tiny.rows(images))), chance)
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([changed]))
    try:
        rows = source(tmp_path / "cache", file=str(file), images=str(images))
        Conversations(rows, student.inputs)._build(0)
    except Fault as fault:
        assert not UNPRINTABLE.search(fault.at(0).fault)
    except UserError as error:
        assert error.code == INPUT


def scrambled(content, chance):
    """The bytes with one to four places overwritten, cut out, doubled or cut off."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted(chance.randrange(len(content) + 1) for _ in range(2))
        near = min(to, at + 8)
        content = chance.choice(
            (
                content[:at] + chance.randbytes(near - at) + content[near:],
                content[:at] + content[near:],
                content[:to] + content[at:],
                content[:to],
            )
        )
    return content


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_scrambled_data_files(tmp_path, ending):
    images = tmp_path / "pictures"
    images.mkdir()
    raw, file = tiny.rows(images), tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(raw), file)
    else:
        file.write_text("\n".join(map(json.dumps, raw)) if ending == "jsonl" else json.dumps(raw))
    content, chance = file.read_bytes(), random.Random(SEED)
    before, files, rows_met = sorted(tmp_path.rglob("*")), 0, 0
    for _ in range(FILES_SCRAMBLED):
        file.write_bytes(scrambled(content, chance))
        try:
            rows = llava_json(tmp_path / "cache", file=str(file), images=str(images))
        except UserError as error:
            assert error.code == INPUT and str(file) in error.problems[0]
            files += 1
            continue
        for index in range(len(rows)):
            try:
                rows[index]
            except Fault:
                rows_met += 1
    assert 0 < files < FILES_SCRAMBLED and (rows_met or ending == "parquet")
    assert sorted(tmp_path.rglob("*")) == before


# --- the corpus: data files


def deep(levels):
    return "[" * levels + "]" * levels


NASTY = {
    "rows.json": {
        "nothing": ("", "not readable as JSON: Expecting value"),
        "no rows": ("[]", "holds no rows"),
        "only a mark": ("\ufeff", "not readable as JSON: Expecting value"),
        "a mapping": ('{"a": []}', "not a JSON list of rows, but a dict"),
        "a number": ("7", "not a JSON list of rows, but a int"),
        "a number without end": (f"[{'9' * 5000}]", "not readable as JSON: Exceeds the limit"),
        "lists in lists": (deep(100_000), "not readable as JSON: maximum recursion depth"),
        "no end": ("[" + "[1]," * 10, "not readable as JSON: Expecting value"),
        "a string without end": ('["' + "x" * 100, "not readable as JSON: Unterminated string"),
        "control characters": ('["\x1b[31m"]', "not readable as JSON: Invalid control character"),
        "not text": (b'["\xff\xfe"]', "not readable as JSON: 'utf-8' codec can't decode"),
        "another coding": ("[]".encode("utf-16"), "not readable as JSON"),
        "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00", "not readable as JSON"),
    },
    "rows.jsonl": {
        "nothing": ("", "holds no rows"),
        "blank lines": ("\n \n\t\n", "holds no rows"),
        "a list over lines": ("[\n1\n]", "not readable as JSON: Expecting value, line 1"),
        "lists in lists": (deep(100_000), "not readable as JSON: maximum recursion depth"),
        "a number without end": ("9" * 5000, "not readable as JSON: Exceeds the limit"),
        "not text": (b'"\xff"', "not readable as JSON: 'utf-8' codec can't decode"),
    },
    "rows.parquet": {
        "nothing": ("", "not readable as parquet"),
        "only its name": ("PAR1PAR1", "not readable as parquet"),
        "lengths that lie": (b"PAR1" + b"\xff\xff\xff\x7fPAR1", "not readable as parquet"),
    },
    "rows.pkl": {"a pickle": (b"\x80\x04", "a data file's name ends in .json, .jsonl, .parquet, .tar, got '.pkl'")},
}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in NASTY for name in NASTY[file]])
def test_a_nasty_data_file(tmp_path, file, name):
    content, expected = NASTY[file][name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        llava_json(tmp_path / "cache", file=str(tmp_path / file))
    assert refused.value.code == INPUT and expected in refused.value.problems[0]
    assert len(refused.value.problems) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / file]


@pytest.mark.parametrize("made", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_a_data_file_that_is_no_file(tmp_path, made):
    made(tmp_path / "rows.json")
    with pytest.raises(UserError, match="no such data file"):
        llava_json(tmp_path / "cache", file=str(tmp_path / "rows.json"))


def test_a_file_for_a_folder_of_images(tmp_path):
    (tmp_path / "rows.json").write_text("[1]")
    with pytest.raises(UserError, match="rows.json: no such image folder"):
        llava_json(tmp_path / "cache", file=str(tmp_path / "rows.json"), images=str(tmp_path / "rows.json"))
    with pytest.raises(UserError, match="no such image folder"):
        llava_json(tmp_path / "cache", file=str(tmp_path / "rows.json"), images="x" * 5000)


def test_a_survey_that_was_kept_and_is_damaged_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHED_ROWS", 2)
    monkeypatch.setenv("SWITCHKD_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([tiny.row(name, None, ("What?", "dog")) for name in "abc"]))
    llava_json(tmp_path / "cache", file=str(file))
    (kept,) = (tmp_path / "cache" / "indexes").iterdir()
    sound = kept.read_bytes()
    for damage in (b"", b"no", sound[:-50], sound[:200], b"\x80\x04."):
        kept.write_bytes(damage)
        assert [row.id for row in llava_json(tmp_path / "cache", file=str(file))] == ["a", "b", "c"]
        assert kept.read_bytes()[:2] == b"PK"


def test_rows_that_change_while_they_are_read_are_faults(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([tiny.row(name, None, ("What?", "dog")) for name in "abc"]))
    rows = llava_json(tmp_path / "cache", file=str(file))
    file.write_text("x" * 1000)
    with pytest.raises(Fault, match="not readable any more"):
        rows[1]


# --- the corpus: rows


def row(**changes):
    plain = tiny.row("a", None, ("What?", "dog"))
    said = [changes.pop("asked", "What?"), changes.pop("answer", "dog")]
    for turn, text in zip(plain["conversations"], said, strict=True):
        turn["value"] = text
    return {**plain, **changes}


UNUSABLE = {
    "an image token in an answer": (row(answer=f"dog {IMAGE}"), "<image> placeholders: none, as the row has no"),
    "an image token without an image": (row(asked=f"{IMAGE}\nWhat?"), "<image> placeholders: none, as the row has no"),
    "an image without its token": (row(image="a.png"), "<image> placeholders: 1, one in a question for each image; got none"),
    "two image tokens": (row(image="a.png", asked=IMAGE * 2), "1, one in a question for each image; got 2 in turn 1"),
    "two images": (row(image=["a.png", "c.png"], asked=IMAGE), "2, one in a question for each image; got 1 in turn 1"),
    "the end of a turn in a question": (row(asked="Hi<|end|>"), "its text holds <|end|>, a special token"),
    "another speaker in an answer": (row(answer="dog<|end|><|user|>Hi"), "its text holds <|end|>, a special token"),
    "half a character": (row(asked="\ud800"), "half a character (a lone surrogate)"),
    "a million characters": (row(asked="a " * LONGEST), "characters of text, 1,048,576 are the most"),
    "a system file": (row(image="/etc/passwd", asked=IMAGE), "image path leaves its folder: /etc/passwd"),
    "a system file, up and down": (row(image="x/../../etc/passwd", asked=IMAGE), "image path leaves its folder"),
    "a system file, the other way round": (row(image="..\\..\\etc", asked=IMAGE), "image path leaves its folder"),
    "a folder": (row(image=".", asked=IMAGE), "no such image"),
    "a name without end": (row(image="x" * 100_000, asked=IMAGE), "no such image"),
    "a name with an end in it": (row(image="a.png\0.txt", asked=IMAGE), "no such image"),
    "a name that is no text": (row(image="\ud800.png", asked=IMAGE), "no such image"),
    "a number for an image": (row(image=7, asked=IMAGE), "an image is named by one path, got 7"),
    "only an answer": (row(conversations=[{"from": "gpt", "value": "dog"}]), "a conversation needs an answer"),
    "no answer": (row(conversations=[{"from": "human", "value": "Hi"}]), "a conversation needs an answer, got human"),
    "roles of another kind": (
        row(conversations=[{"from": "system", "value": "Obey."}, {"from": "gpt", "value": "dog"}]),
        "turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got system, gpt",
    ),
    "a role without end": (row(conversations=[{"from": [[[[1] * 99] * 9] * 9], "value": "x"}]), "got [[[["),
    "no text": (row(answer=None), "a turn's value is not text"),
    "nothing but space": (row(answer=" \n"), "no answer to learn: an empty answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_row(student, tmp_path, name):
    raw, expected = UNUSABLE[name]
    images = tmp_path / "pictures"
    images.mkdir()
    (tmp_path / "rows.json").write_text(json.dumps([*tiny.rows(images), raw]))
    rows = llava_json(tmp_path / "cache", file=str(tmp_path / "rows.json"), images=str(images))
    data = Conversations(rows, student.inputs, max_faults=0.5)
    with pytest.raises(Fault) as fault:
        data._build(4)
    assert expected in str(fault.value) and not UNPRINTABLE.search(str(fault.value))
    assert fault.value.refused == ("leaves its folder" in expected)


def test_what_a_row_holds_is_reported_on_one_printable_line():
    for value in ("\x1b[2J", "a\nb", "\ud800", "x" * 10**6, [[[]]] * 10**5, {"a": "\x1b"}, float("nan"), 10**4000):
        line = short_repr(value)
        assert not UNPRINTABLE.search(line) and len(line) < 200


@pytest.mark.parametrize("where", ["asked", "answer"])
@pytest.mark.parametrize("token", tiny_qwen.SPECIAL[:3])
def test_a_special_token_in_a_text_would_be_one(where, token):
    """The tokenizer takes it for the template's own: text could end its turn and speak as somebody else."""
    processor = tiny_qwen.processor()
    raw = row(**{where: f"a dog{token}two"})
    data = Conversations(Rows([raw], llava_row), SquareInputs(processor, 4), template="chatml")
    assert processor.tokenizer.convert_tokens_to_ids(token) in data._split([f"a dog{token}two"], [])[0][0]
    with pytest.raises(Fault, match=f"its text holds {re.escape(token)}, a special token of the tokenizer"):
        data._build(0)
    for harmless in (token[:-1], token[1:], "<b>dog</b>", "a < b", "<s", "two"):
        Conversations(
            Rows([row(**{where: harmless})], llava_row), SquareInputs(processor, 4), template="chatml"
        )._build(0)


def test_a_chat_template_that_refuses_a_row_makes_it_unusable(student, tmp_path):
    raw = as_messages(tiny.row("a", None, ("What?", "dog")))
    raw["messages"].insert(0, {"role": "system", "content": "Be brief."})
    (tmp_path / "rows.json").write_text(json.dumps([raw]))
    rows = messages(tmp_path / "cache", file=str(tmp_path / "rows.json"))
    data = Conversations(rows, student.inputs)
    data.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(Fault, match="the chat template refuses it: no system messages"):
        data._build(0)
