"""Recipes that were made to do harm, or broken at random: every one ends in a UserError or is a recipe."""

import copy
import os
import random
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from switchkd_cli import cli
from switchkd_cli.errors import INPUT, UserError
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.load import load, load_rows
from switchkd_cli.recipe.named_files import locate
from switchkd_cli.recipe.run import fingerprint
from switchkd_cli.runs import run_folder
from tests.support.places import places
from tests.support.small_recipe import write

VALUES_CHANGED, TEXTS_SCRAMBLED = 600, 400
SEED = 5

VALUES = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**400), 0.0, -0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "..", "../..", "/", "/etc/passwd", "~nobody/x", "~", "\x00", "\x1b[31mred", "a\nb", "\ud800"),
    *("x" * 300, "x" * 100_000, "[bold]", "[/]", "{{ 7 * 7 }}", "%s%n", "playground:..", "teacher", "switch", "labels"),
    *([], {}, [[]], {"": {}}, {"fresh": {}}, {"fresh": {"hidden_size": 10**9}}, {"loss": []}, [None], ["x"] * 50),
]  # fmt: skip
SCRAPS = [
    *("!!python/object/apply:os.system [touch pwned]", "!!python/name:os.system", "!x", "&a", "*a", "<<: *a", "? ", ": "),
    *("- ", "{", "}", "[", "]", "'", '"', "|", ">", "#", "%YAML 1.1", "---", "...", "\t", "\n", "\r", "\x00", "\x07"),
    *("\x1b[2J", "\ufeff", "\u2028", "\u202e", "\ud800", "\U0001f600", "9" * 5000, "0x", "1e999", ".nan", "=", "@", "`"),
]  # fmt: skip


def refused(of, *arguments, **more):
    """The problems of what `of` refuses; none where it takes what it is given."""
    try:
        of(*arguments, **more)
    except UserError as error:
        assert error.code == INPUT and error.problems
        assert all(printable(problem) and len(problem) <= 2000 for problem in (*error.problems, error.hint))
        return error.problems
    return ()


def printable(line):
    """Whether the line is one line, and a terminal does nothing with it but show it."""
    return not set(line) & {chr(code) for code in (*range(32), *range(127, 160), *range(0xD800, 0xE000))}


def tree(folder):
    return sorted(folder.rglob("*"))


# --- mutations


def mutated(data, chance):
    """The data with one or two of its places changed, dropped, renamed, doubled or moved."""
    for _ in range(chance.randint(1, 2)):
        *parents, last = chance.choice([at for at in places(data) if at])
        target = data
        for step in parents:
            target = target[step]
        match chance.randrange(6):
            case 0:
                del target[last]
            case 1 if isinstance(target, dict):
                name = chance.choice([v for v in VALUES if isinstance(v, str)])
                target[name] = target.pop(last)
            case 2 if isinstance(target, list):
                target.append(target[last])
            case 3:
                spot = data
                for step in chance.choice([at for at in places(data) if at]):
                    spot = spot[step]
                target[last] = copy.deepcopy(spot)
            case _:
                target[last] = chance.choice(VALUES)
        if not data:
            return data
    return data


def scrambled(text, chance):
    """The text with one to four scraps put in, pieces cut out, doubled or swapped."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        to = min(to, at + chance.choice((1, 5, 40)))
        text = chance.choice(
            (
                text[:at] + chance.choice(SCRAPS) + text[at:],
                text[:at] + text[to:],
                text[:to] + text[at:],
                text[:at] + text[at:to][::-1] + text[to:],
            )
        )
    return text


def taken(file, world=None):
    """What is asked of a recipe before anything heavy is imported: where its rows go and what they depend on."""
    for run in load_rows(file, world=world):
        assert run_folder.folder(file.parent / "runs", run).path.is_relative_to(file.parent / "runs")
        assert run.key and run.stage_key(0)
    return True


def survived(file, texts):
    """How many of the texts are recipes, in a world or out of it; the others are refused, and nothing is written."""
    before, some = tree(file.parent), 0
    for number, text in enumerate(texts):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        some += not refused(taken, file, "playground" if number % 3 == 2 else None)
    assert tree(file.parent) == before
    return some


@pytest.mark.slow
def test_hundreds_of_recipes_with_other_values(tmp_path):
    file = write(tmp_path)
    plain, chance = yaml_positions.value(file.read_text()), random.Random(SEED)
    texts = (yaml_positions.write(mutated(copy.deepcopy(plain), chance)) for _ in range(VALUES_CHANGED))
    # else the mutations are too wild, or too tame
    assert VALUES_CHANGED / 50 < survived(file, texts) < VALUES_CHANGED / 2


@pytest.mark.slow
def test_hundreds_of_recipes_with_scrambled_text(tmp_path):
    file = write(tmp_path)
    plain, chance = file.read_text(), random.Random(SEED)
    assert survived(file, (scrambled(plain, chance) for _ in range(TEXTS_SCRAMBLED))) < TEXTS_SCRAMBLED / 2


@pytest.mark.slow
@given(chance=st.randoms(use_true_random=False), by_text=st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mutation_is_refused_or_is_a_recipe(tmp_path, chance, by_text):
    """The same once more with hypothesis, which looks for what fails and makes it small."""
    file = write(tmp_path)
    text = file.read_text()
    changed = scrambled(text, chance) if by_text else yaml_positions.write(mutated(yaml_positions.value(text), chance))
    survived(file, [changed])


# --- the corpus: each does one kind of harm


def bomb(levels):
    """A billion laughs: each name stands for ten of the one before."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


NASTY = {
    "a tag that runs code": (
        "title: !!python/object/apply:os.system [touch pwned]\n",
        "tags are not read, got 'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    "a tag on a key": ("!!python/name:os.system title: x\n", "a key must be a word"),
    "a tag that lies": ("title: !!bool maybe\n", "not a bool, got 'maybe'"),
    "an empty number": ('title: !!int ""\n', "not a int, got ''"),
    "an alias bomb": (bomb(12), "aliases are not read"),
    "an alias of itself": ("title: &a [*a]\n", "aliases are not read"),
    "a merge key": ("title: {<<: {a: 1}}\n", "must be text, got a mapping"),
    "lists in lists": (f"title: {'[' * 5000}{']' * 5000}\n", "nested deeper than 30 levels"),
    "mappings in mappings": ("\n".join(" " * n + f"k{n}:" for n in range(200)), "nested deeper than 30 levels"),
    "a key twice": ("title: x\ntitle: y\n", "title: written twice (first at "),
    "a number without end": (f"seed: {'9' * 5000}\n", "not a int, got '999"),
    "a number beyond all": (f"seed: {'9' * 4000}\n", "seed: must be less than 4294967296, got 999"),
    "no number": ("seed: .nan\n", "seed: must be a whole number, got nan"),
    "a control character": ('title: "\\e[31mred"\n', "a value is one line without control characters"),
    "two lines": ('title: "a\\nb"\n', "a value is one line without control characters"),
    "half a character": ('title: "\\ud800"\n', "a value is one line without control characters"),
    "text turned round": ('title: "\\u202eexe.txt"\n', "a value is one line without control characters"),
    "no character": ('title: "\\Uffffffff"\n', "not readable as YAML"),
    "a raw control character": ("title: \x1b[31mred\n", "not readable as YAML: unacceptable character"),
    "a key of two lines": ('"a\\nb": 1\n', "a key is one line without control characters"),
    "no end": ("x" * 300_000, "not a recipe: 262,145 characters, 262,144 are the most"),
    "nothing": ("", "a recipe is a mapping, got nothing"),
    "only a mark": ("\ufeff", "a recipe is a mapping, got nothing"),
    "many documents": ("a: 1\n---\nb: 1\n", "not readable as YAML"),
    "not text": (b"title: \xff\xfe\n", "not readable: 'utf-8' codec can't decode"),
    "another coding": ("title: x\n".encode("utf-16"), "not readable: 'utf-8' codec can't decode"),
}


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_recipe(tmp_path, name):
    text, expected = NASTY[name]
    file = tmp_path / "nasty.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = refused(load, file)
    assert any(expected in problem for problem in problems), problems
    assert tree(tmp_path) == [file]


def test_a_byte_order_mark_is_no_part_of_the_recipe(tmp_path):
    file = write(tmp_path)
    plain = load(file).key
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    assert load(file).key == plain


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("made", [os.mkfifo, device, folder])
@pytest.mark.parametrize("extended", [False, True])
def test_a_recipe_that_is_no_file(tmp_path, made, extended):
    """A pipe that nobody writes to would be waited for, and a device read for ever."""
    made(tmp_path / "odd.yaml")
    file = tmp_path / "odd.yaml"
    if extended:
        file = tmp_path / "more.yaml"
        file.write_text("extends: odd.yaml\ntitle: x\n")
    (problem,) = refused(load, file)
    assert "not readable: not a file" in problem or "no such recipe, got 'odd.yaml'" in problem


@pytest.mark.parametrize("name", ["", ".", "..", "../small.yaml", "/etc/passwd", "x" * 5000, "\0"])
def test_a_recipe_extends_none_that_lies_elsewhere(tmp_path, name):
    file = write(tmp_path, ("title: small", f'title: small\nextends: "{name}"'.replace("\0", "\\0")))
    assert refused(load, file)


@pytest.mark.parametrize(
    "override",
    [
        "title=!!python/object/apply:os.system [touch pwned]",
        f"seed={'9' * 5000}",
        f"title={'[' * 2000}",
        "title={a: 1, a: 2}",
        'title="\\e[31m"',
        "stages.distill.lr=*a",
        "teacher.checkpoint=~nobody-here/model",
        ".=1",
        "..=1",
        "stages.-1.lr=1",
        "stages.²=1",
        "title.=",
        f"{'a.' * 5000}b=1",
    ],
)
def test_a_nasty_override(tmp_path, override):
    file = write(tmp_path)
    assert refused(load, file, None, [override]) or "nobody" in override


@pytest.mark.parametrize("name", ["...yaml", "..yaml", ".hidden.yaml", "a\nb.yaml", "\x1b[31mred.yaml"])
def test_a_recipe_whose_name_is_no_folder_of_its_own(tmp_path, name):
    """`...yaml` would put its runs beside the folder of all runs."""
    text = write(tmp_path).read_text()
    (tmp_path / name).write_text(text)
    run = load(tmp_path / name)
    (problem,) = refused(run_folder.folder, tmp_path / "runs", run)
    assert f"a recipe can't have this name: its runs go to {tmp_path / 'runs'}" in problem


@pytest.mark.parametrize("row", ["../x", "a/b", "..", "a\nb", "\x1b[31m", ""])
def test_a_row_whose_name_is_no_folder(tmp_path, row):
    data = yaml_positions.value(write(tmp_path).read_text())
    data["rows"][row] = data["rows"].pop("long")
    file = tmp_path / "small.yaml"
    file.write_text(yaml_positions.write(data))
    assert refused(load, file)


@pytest.mark.parametrize(
    "name", ["playground:..", "playground:../..", "playground:", "playground:/etc", "playground:."]
)
def test_what_this_package_ships_lies_in_this_package(name):
    (problem,) = refused(locate, name)
    assert problem == f"{name}: no such model in this package"


@pytest.mark.parametrize("name", ["~nobody-here/model", "/" + "x" * 5000, "a/" + "x" * 5000, "x" * 100_000])
def test_a_model_of_a_strange_name(name):
    refused(locate, name)
    assert fingerprint(name) is None


def test_a_file_of_a_strange_name_in_a_checkpoint(tmp_path):
    """A name of bytes that are no text is a name all the same."""
    (tmp_path / "config.json").write_text("{}")
    plain = fingerprint(str(tmp_path))
    (tmp_path / os.fsdecode(b"\xff\n")).write_text("x")
    os.mkfifo(tmp_path / "pipe")
    assert plain != fingerprint(str(tmp_path))


@pytest.mark.parametrize("command", ["distill", "pretrain", "ablate", "compare"])
@pytest.mark.parametrize("name", ["a tag that runs code", "an alias bomb", "lists in lists", "not text", "nothing"])
def test_a_nasty_recipe_on_the_command_line(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    text, expected = NASTY[name]
    (tmp_path / "nasty.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr(sys, "argv", ["switchkd", command, "nasty.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (INPUT, "") and expected in err and "Traceback" not in err
    assert tree(tmp_path) == [tmp_path / "nasty.yaml"]
