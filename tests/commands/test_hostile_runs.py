"""Run folders that were edited by hand or come from somebody else: `compare` tells, and writes nothing."""

import json
import os
import random
import sys

import pytest

from switchkd_cli import cli
from switchkd_cli.errors import INPUT, UserError
from switchkd_cli.recipe.load import load
from switchkd_cli.report.formats.markup import plain
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import claim_folder
from switchkd_cli.terminal import console
from tests.support import made_up_runs
from tests.support.small_recipe import write

EDITED = 400
SEED = 5
SCORES = {"mme": 40.0, "gqa": 60.0, "pope": 70.5}
VALUES = [
    *(None, True, -1, 0, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\x1b[31mred", "a\nb", "\ud800"),
    *("../../x", "[bold]", "[/]", [], {}, [[]], {"": 0}, {"score": "x"}, "finished", "nan"),
]  # fmt: skip
HARMLESS = {"\n", "\t"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two finished runs of one recipe."""
    monkeypatch.chdir(tmp_path)
    recipe = write(tmp_path)
    for row, title in (("switch-kd", "Switch-KD"), ("sft", "SFT")):
        folder = made_up_runs.run(tmp_path / "runs", row, title, SCORES, stages=load(recipe, row).text)
        folder.answers.mkdir()
        for task, score in SCORES.items():
            lines = [
                {"doc_id": i, "prompt": "?", "key": "k", "target": "yes", "answer": "no", "score": score / 100}
                for i in range(4)
            ]
            (folder.answers / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def compare(place, monkeypatch, capsys):
    """Runs the program: (exit code, all that it printed). It may write nothing and crash on nothing."""

    def run(*arguments):
        before = tree(place)
        monkeypatch.setattr(sys, "argv", ["switchkd", "compare", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        assert code in (0, INPUT) and "Traceback" not in err, err
        assert all(c.isprintable() or c in HARMLESS for c in out + err), out + err
        assert tree(place) == before
        return code, out + err

    return run


def tree(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_the_runs_are_sound(compare):
    code, told = compare()
    assert code == 0 and "Switch-KD" in told and "56.8" in told


# --- the corpus

RECORD, RESULTS, METRICS, RECIPE = "run.json", "results.json", "metrics.jsonl", "recipe.yaml"
DEEP = "[" * 100_000

NASTY = [
    (RECORD, "", "no finished run with scores"),
    (RECORD, "[]", "run.json: all of it: Input should be a valid dictionary"),
    (RECORD, {"title": "\x1b[31mred"}, "run.json: title: Value error, must be one line without control characters"),
    (RECORD, {"title": "a\nb"}, "title: Value error, must be one line without control characters"),
    (RECORD, {"title": None}, "title: Input should be a valid string"),
    (RECORD, {"seed": "1"}, "seed: Input should be a valid integer"),
    (RECORD, {"seed": -1}, "seed: Input should be greater than or equal to 0"),
    (RECORD, {"ended": 7}, "ended: Input should be a valid string"),
    (RECORD, {"paper": {"mme": "61"}}, "paper.mme: Input should be a valid number"),
    (RECORD, DEEP, "no finished run with scores"),
    (RESULTS, "", "results.json is missing or unreadable"),
    (RESULTS, "7", "results.json: all of it: Input should be a valid dictionary"),
    (RESULTS, DEEP, "results.json is missing or unreadable"),
    (RESULTS, b"\xff\xfe", "results.json is missing or unreadable"),
    (RESULTS, {"scores": {}}, "scores: Dictionary should have at least 1 item"),
    (RESULTS, {"scores": {"mme": {"score": 61.0}}}, "scores.mme.items: Field required"),
    (RESULTS, {"scores": {"mme": {"score": float("nan"), "items": 4}}}, "scores.mme.score: Input should be"),
    (RESULTS, {"scores": {"mme": {"score": 1e9, "items": 4}}}, "scores: Value error, mme.score: must be 0 to 100"),
    (RESULTS, {"scores": {"../../x": {"score": 1.0, "items": 4}}}, "should match pattern '^[A-Za-z0-9]"),
    (RESULTS, {"world": "\x1b[2J"}, "world: Value error, must be one line without control characters"),
    (METRICS, "no JSON\n{\n[]\n", "3 lines of metrics.jsonl can't be read"),
    (METRICS, DEEP, "1 lines of metrics.jsonl can't be read"),
    (METRICS, b"\xff\xfe\n", "1 lines of metrics.jsonl can't be read"),
    (METRICS, '{"step": 1, "seconds": "x"}\n{"event": "warning", "text": "\\u001b[31m"}', "\\x1b[31m"),
    (RECIPE, "", "recipe.yaml: a recipe is a mapping, got nothing"),
    (RECIPE, "stages: []\n", "recipe.yaml:1: stages: must not be empty"),
    (RECIPE, "stages: [{name: x}]\n", "recipe.yaml:1: stages.x.batch: missing"),
    (RECIPE, "a: &a [x]\nb: *a\n", "aliases are not read"),
    (RECIPE, "stages: !!python/object/apply:os.system [touch pwned]\n", "tags are not read"),
    (RECIPE, b"\xff\xfe", "recipe.yaml: not readable"),
    ("answers/mme.jsonl", "no JSON\n" * 4, "mme.jsonl:1: not readable as JSON"),
    ("answers/mme.jsonl", "[]\n" * 4, "mme.jsonl:1: all of it: Input should be a valid dictionary"),
    ("answers/mme.jsonl", '{"doc_id": 0, "score": "x"}\n' * 4, "mme.jsonl:1: score: Input should be a valid number"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "change", "expected"), NASTY)
def test_a_file_that_was_edited(place, compare, file, change, expected):
    for row in ("switch-kd", "sft"):
        path = place / "runs" / "quick" / row / "seed0" / file
        if isinstance(change, dict):
            change_to = json.dumps(json.loads(path.read_text()) | change).encode()
        else:
            change_to = change if isinstance(change, bytes) else change.encode()
        path.write_bytes(change_to)
    code, told = compare()
    assert expected in told, told
    assert code == (0 if file == METRICS else INPUT)


@pytest.mark.parametrize("file", [RECORD, RESULTS, METRICS, RECIPE, "answers/mme.jsonl"])
@pytest.mark.parametrize("made", [os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to(path.name)])
def test_a_file_of_a_run_that_is_no_file(place, compare, file, made):
    """A pipe that nobody writes to would be waited for."""
    path = place / "runs" / "quick" / "sft" / "seed0" / file
    path.unlink()
    made(path)
    compare()


def test_hundreds_of_files_edited_at_random(place, compare):
    chance = random.Random(SEED)
    files = [file for file in (place / "runs").rglob("*.json*")]
    some = 0
    for _ in range(EDITED // 10):
        kept = {}
        for _ in range(2):
            file = chance.choice(files)
            kept.setdefault(file, file.read_bytes())
            if chance.random() < 0.2:
                content = bytearray(file.read_bytes())
                at = chance.randrange(len(content))
                content[at : at + chance.randint(0, 20)] = chance.randbytes(chance.randint(0, 5))
                file.write_bytes(bytes(content))
            elif file.suffix == ".json":
                file.write_text(json.dumps(_edited(json.loads(kept[file]), chance)))
            else:
                lines = kept[file].decode().splitlines()
                at = chance.randrange(len(lines))
                lines[at] = json.dumps(_edited(json.loads(lines[at]), chance))
                file.write_text("\n".join(lines))
        code, _ = compare()
        some += code == 0
        for file, content in kept.items():
            file.write_bytes(content)
    assert 0 < some < EDITED // 10


def _edited(data, chance):
    """One field changed or dropped."""
    target = data
    while True:
        if not target:
            return chance.choice(VALUES)
        step = chance.choice(list(target) if isinstance(target, dict) else range(len(target)))
        if not isinstance(target[step], dict | list) or chance.random() < 0.3:
            break
        target = target[step]
    if chance.random() < 0.2:
        del target[step]
    else:
        target[step] = chance.choice(VALUES)
    return data


def test_scores_of_a_teacher_that_were_edited(tmp_path):
    shared = run_folder.evaluation(tmp_path, "key")
    shared.path.mkdir(parents=True)
    for told in ([], {"scores": []}, {"teacher": {"scores": "x"}}, {"not_beaten": {"mme": ["\x1b["]}}):
        (shared.path / "results.json").write_text(json.dumps(told))
        with pytest.raises(UserError) as refused:
            run_folder.scores(shared)
        assert str(shared.path) in refused.value.problems[0] and "remove " in refused.value.hint


# --- what is printed


@pytest.mark.parametrize(
    "title", ["[bold]x[/bold]", "[/]", "[red", "x[/]y", ":smile:", "\\[b]", "{x}", "%s", "<b>", "$x$"]
)
@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv", "json"])
def test_a_title_is_text_and_no_markup(place, compare, title, form):
    file = place / "runs" / "quick" / "sft" / "seed0" / RECORD
    file.write_text(json.dumps(json.loads(file.read_text()) | {"title": title}))
    code, told = compare("--format", form)
    assert code == 0
    if form in ("text", "markdown"):
        assert (plain(title) if form == "markdown" else title) in told
    if form == "json":
        assert json.dumps(title)[1:-1] in told


def test_an_error_is_shown_without_what_a_terminal_would_obey(capsys):
    error = UserError(["\x1b[31mred", "two\nlines", "half \ud800", "turned \u202e", "x" * 10_000], hint="\x07[/]")
    console.say("\n".join(error.lines))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == ["\\x1b[31mred", "two\\nlines", "half \\ud800", "turned \\u202e"]
    assert len(lines) == 6 and len(lines[4]) < 1100 and lines[5] == "hint: \\x07[/]"


# --- where things are written


@pytest.mark.parametrize("out", ["small.yaml", "small.yaml/deeper", "small.yaml/../small.yaml/x"])
def test_an_out_that_lies_in_a_file(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    before = tree(tmp_path)
    for command in (["distill", "small.yaml", "--row", "sft", "evaluation=null"], ["compare"], ["eval"]):
        monkeypatch.setattr(sys, "argv", ["switchkd", *command, "--out", out])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == INPUT and "Traceback" not in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_run_of_a_recipe_called_like_a_pattern(tmp_path):
    """Its name is no pattern when runs are looked for."""
    text = write(tmp_path).read_text()
    (tmp_path / "[sft]*.yaml").write_text(text)
    run = load(tmp_path / "[sft]*.yaml")
    for name in (run.recipe, "s"):
        folder = run_folder.RunFolder(tmp_path / "runs" / name / run.row / "seed0")
        folder.path.mkdir(parents=True)
        folder.record.write_text('{"status": "finished"}')
    (found,) = run_folder.finished(tmp_path / "runs", run.recipe)
    assert found.path.parents[1].name == "[sft]*"


def test_a_run_without_its_own_words(place):
    folder = run_folder.RunFolder(place / "runs" / "quick" / "sft" / "seed0")
    folder.record.write_text('{"status": "finished"}')
    for of in (lambda: read(folder), folder.run):
        with pytest.raises(UserError):
            of()


def test_no_secret_of_the_environment_is_written(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "hush-hush")
    with claim_folder(tmp_path / "runs", load(write(tmp_path))) as (folder, _):
        folder.log({"step": 1})
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(written) == 3 and not any(b"hush-hush" in path.read_bytes() for path in written)
