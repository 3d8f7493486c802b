"""scripts/playground_rows: what lists and drills say is found again in the text alone; recipes name what is written."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from scripts.playground_rows import __main__ as command
from scripts.playground_rows.drills import drill
from scripts.playground_rows.lists import list_row
from scripts.playground_rows.named_rows import NamedRows, named_rows
from scripts.playground_rows.phrases import PHRASES
from scripts.playground_rows.write import KINDS, WITH_IMAGES, write
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.playground.text.questions import LETTERS
from switchkd_cli.playground.text.words import say
from switchkd_cli.playground.world import CONCEPTS, SIZE, scenes
from tests.support import small_recipe
from tests.support.shipped_recipes import PLAYGROUND, needs_rows
from tests.support.true_answers import holds

SOME = list(scenes("train", 300, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_llava_json(tmp_path, kind):
    file = write(tmp_path / "rows", kind=kind, pictures=12, turns=5, seed=1)
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["id"] for row in rows] == [f"{kind}-{scene.id}" for scene in scenes("train", 12, 1)]
    for row in rows:
        turns = row["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * 5
        assert all(turn["value"] for turn in turns)
        images = [turn["value"].count("<image>") for turn in turns]
        assert sum(images) == images[0] == (kind in WITH_IMAGES) == ("image" in row)
        if kind in WITH_IMAGES:
            with Image.open(file.parent / row["image"]) as picture:
                assert picture.size == (SIZE, SIZE)
    assert (file.parent / "images").exists() == (kind in WITH_IMAGES)
    read = llava_json(tmp_path, file=str(file), images=str(file.parent) if kind in WITH_IMAGES else None)
    assert len(read) == 12 and not read.survey.faults


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_rows_are_the_first_of_more(tmp_path, kind):
    """A recipe that needs a part of another's rows takes it with `limit`."""
    few, many = (write(tmp_path / str(n), kind=kind, pictures=n, turns=4, seed=3).read_text() for n in (5, 9))
    assert json.loads(few) == json.loads(many)[:5]


# Lists and drills


def options_of(text: str) -> dict[str, str]:
    return dict(line.split(". ") for line in text.split("\n") if re.match(r"[A-D]\. ", line))


def test_answers_about_lists_follow_from_the_text():
    kinds = Counter()
    for number in range(500):
        turns = list_row(random.Random(number), 6)
        opening, rest = turns[0][0].split("\n", 1)
        there = [re.sub("^(an? |有)", "", name) for name in re.split(", |，", opening.rstrip(".。"))]
        assert 2 <= len(set(there)) == len(there) <= 8
        for text, answer in [(rest, turns[0][1]), *turns[1:]]:
            first, *lines = text.split("\n")
            chinese = re.search("[\u4e00-\u9fff]", first) is not None
            comma, gap = ("，", "") if chinese else (", ", " ")
            options = options_of(text)
            if first in PHRASES["check"].values():
                kinds["roll"] += 1
                yes, no = ("有", "没有") if chinese else (" yes", " no")
                said = options or dict(zip(lines, lines, strict=True))  # of options, their letters are said
                assert answer == comma.join(way + (yes if name in there else no) for way, name in said.items())
            elif first in PHRASES["shown"].values():
                (true,) = (letter for letter, name in options.items() if name in there)
                kinds["shown"] += 1
                assert answer in (true, options[true], f"{options[true]}{gap}{true}")
            elif answer[0] in LETTERS:  # the options again, in the order that is wanted
                kinds["again"] += 1
                letters = re.findall("[A-D](?=[, .。])", first)
                assert answer == comma.join(f"{letter}{gap}{options[letter]}" for letter in letters)
            else:
                kinds["letters"] += 1
                assert set(answer.split(comma)) <= {f"{name}{gap}{letter}" for letter, name in options.items()}
                names = first.removeprefix("Which letters have ").removesuffix("?").removesuffix("是哪个选项？")
                assert [part[:-1].rstrip() for part in answer.split(comma)] == names.split(comma)
    assert min(kinds.values()) > 200 and len(kinds) == 4


def test_drills_about_a_scene_are_true():
    for scene in SOME[:300]:
        rng = random.Random(scene.id)
        for text, answer in (drill(scene, rng) for _ in range(10)):
            first = text.split("\n")[0]
            if first in PHRASES["check"].values():
                shown = {say(name, language) for name in scene.concepts for language in ("en", "zh")}
                words = [" yes", " no"] if first == PHRASES["check"]["en"] else ["有", "没有"]
                said = options_of(text) or {name: name for name in text.split("\n")[1:]}
                assert re.split(", |，", answer) == [way + words[name not in shown] for way, name in said.items()]
            elif first == "Where are the things?":
                items = [f"{item.place} {item.name}" for item in scene.items]
                assert answer == ", ".join(items)
            elif first.rstrip("?") in CONCEPTS:
                assert answer == ("yes" if first.rstrip("?") in scene.concepts else "no")
            elif first == "Which is true?":
                chosen = options_of(text)[answer]
                assert holds(scene, f"Is {chosen.replace(' is ', ' ')}?")


# The command


def recipe(folder, **parameters):
    """A recipe that names one file, in both of its data sets."""
    written = "{" + ", ".join(f"{key}: {value}" for key, value in parameters.items()) + "}"
    swaps = [(f"{{file: {name}, images: pictures{more}}}", written) for name, more in NAMED.items()]
    return small_recipe.write(folder, *swaps)


NAMED = {"captions.json": "", "questions.json": ", limit: 8"}


def run(monkeypatch, *files):
    monkeypatch.setattr(sys, "argv", ["playground_rows", *map(str, files)])
    return command.main()


def test_the_command_writes_what_a_recipe_names_and_only_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/rows/choices-3x2-9")
    file = recipe(tmp_path, file=folder / "rows.json", images=folder, turns="independent")
    assert run(monkeypatch, file) == 0
    assert capsys.readouterr().out == f"{folder}/rows.json\n"
    rows, inode = json.loads((folder / "rows.json").read_text()), (folder / "rows.json").stat().st_ino
    assert [len(row["conversations"]) for row in rows] == [4] * 3
    assert run(monkeypatch, file, file) == 0
    assert (folder / "rows.json").stat().st_ino == inode
    assert (
        write(tmp_path / "apart", kind="choices", pictures=3, turns=2, seed=9).read_bytes()
        == (folder / "rows.json").read_bytes()
    )


@pytest.mark.parametrize(
    ("file", "images", "problem"),
    [
        (
            "runs/rows/drill-3x2-9/rows.json",
            "runs/rows/drill-3x2-9",
            "no such kind of rows, got 'drill' (did you mean 'drills'?)",
        ),
        ("runs/rows/captions-3x2-9/rows.json", "x", "no such kind of rows, got 'captions'"),
        ("runs/rows/drills-0x2-9/rows.json", "x", "not a name that says what is in it"),
        ("runs/rows/drills-3x2/rows.json", "x", "not a name that says what is in it"),
        ("data/captions.json", "data", "not a name that says what is in it"),
        ("runs/rows/drills-3x2-9/rows.json", "elsewhere", "images: must be runs/rows/drills-3x2-9, got elsewhere"),
        ("runs/rows/lists-3x2-9/rows.json", "runs", "images: must be left out, got runs"),
        ("runs/rows/drills-3x2-9/rows.json", "runs/rows/drills-3x2-9", "turns: must be independent, got None"),
    ],
)
def test_a_name_that_cannot_be_read_is_a_line_and_exit_code_2(tmp_path, monkeypatch, capsys, file, images, problem):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, recipe(tmp_path, file=file, images=images)) == 2
    assert problem in capsys.readouterr().err
    assert not Path("runs").exists()


def test_no_such_recipe_is_exit_code_2(tmp_path):
    words = [sys.executable, "-m", "scripts.playground_rows", str(tmp_path / "none.yaml")]
    ended = subprocess.run(words, check=False, capture_output=True, text=True)
    assert ended.returncode == 2 and "none.yaml" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("file", PLAYGROUND, ids=lambda file: file.stem)
def test_a_recipe_of_the_playground_s_models_says_the_command_where_it_needs_one(file):
    """The shipped names can be read, and reader_bpe's rows are a part of the reader's."""
    found = named_rows([file])
    assert bool(found) == needs_rows(file) == (file.stem != "tower")
    assert all(rows.folder == Path(f"runs/rows/{named(rows)}") for rows in found)


def named(rows: NamedRows) -> str:
    return f"{rows.kind}-{rows.pictures}x{rows.turns}-{rows.seed}"
