"""Several recipes as one matrix: what they have in common is made once, with a stand-in for the engine."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_json
from switchkd_cli.recipe import named_files
from switchkd_cli.recipe.load import load
from switchkd_cli.runs import checkpoints, run_folder
from switchkd_cli.runs.claim import claim_folder
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler import pool
from tests.commands.test_cli_lifecycle import switchkd
from tests.support import fake_engine
from tests.support.small_recipe import write

OTHER_ROWS = """\
rows:
  both: {title: Both terms}
  align: {title: Align alone, drop: [vsd]}
  sft: {title: SFT, drop: [align, vsd]}
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, "WORKER", (sys.executable, str(Path(fake_engine.__file__))))
    return fake_engine.install(monkeypatch)


@pytest.fixture
def recipes(tmp_path, calls):
    """`small.yaml` without its row that crashes, and `other.yaml`: the same rows under other names, and one more."""
    small = write(tmp_path)
    text = small.read_text()
    small.write_text(text[: text.index("  long:")])
    other = tmp_path / "other.yaml"
    other.write_text(text[: text.index("rows:")].replace("title: small", "title: other") + OTHER_ROWS)
    return small, other


def trained(tmp_path):
    return sorted((tmp_path / "runs" / "trained").read_text().splitlines())


def folder(tmp_path, place):
    return run_folder.RunFolder(tmp_path / "runs" / place)


def places(runs):
    return [RunFolder(run.path).place for run in runs]


def test_what_two_recipes_share_is_trained_once_and_each_has_its_table(tmp_path, calls, recipes, monkeypatch):
    assert switchkd(monkeypatch, "ablate", *recipes, "--seeds", 2, "--jobs", 2) == 0
    made = [f"{name}/{seed}" for name in ("other/align", "small/sft", "small/switch-kd") for seed in (0, 1)]
    assert trained(tmp_path) == made
    assert (tmp_path / "runs" / "scored").read_text() == "small\n"
    tables = [places(arguments[0]) for name, arguments, _ in calls if name == "ablation"]
    assert tables == [
        [f"small/{row}/seed{seed}" for row in ("switch-kd", "sft") for seed in (0, 1)],
        [f"other/{row}/seed{seed}" for row in ("both", "align", "sft") for seed in (0, 1)],
    ]
    assert all(arguments[1] == {"teacher": fake_engine.RESULTS} for _, arguments, _ in calls[-2:])


def test_a_shared_run_says_where_it_is_from_and_keeps_what_was_measured(tmp_path, recipes, monkeypatch):
    switchkd(monkeypatch, "ablate", *recipes)
    source, taken = folder(tmp_path, "small/switch-kd/seed0"), folder(tmp_path, "other/both/seed0")
    ours, theirs = taken.info(), source.info()
    reused = ours.pop("reused")
    assert reused["from"] == "small/switch-kd/seed0"
    assert reused["command"] == theirs["command"] == ["switchkd", "ablate", *map(str, recipes)]
    assert (ours["recipe"], ours["row"], ours["title"]) == ("other", "both", "Both terms")
    own = {"recipe", "row", "title", "paper"}
    assert {k: v for k, v in ours.items() if k not in own} == {k: v for k, v in theirs.items() if k not in own}
    for name in ("metrics.jsonl", "results.json", "model/config.json"):
        assert (taken.path / name).samefile(source.path / name)
    assert (taken.model / "README.md").read_text() == "other both"
    assert (source.model / "README.md").read_text() == "small switch-kd"
    assert taken.run().title == "Both terms" and taken.run().key == source.run().key
    assert "reused" not in theirs
    assert not list(taken.path.parent.glob(".*"))


def test_a_run_that_was_taken_over_names_the_one_that_was_trained(tmp_path, recipes, monkeypatch):
    small, other = recipes
    switchkd(monkeypatch, "ablate", other, "--rows", "both")
    switchkd(monkeypatch, "ablate", small, "--rows", "switch-kd")
    (tmp_path / "runs" / "other").rename(tmp_path / "gone")
    third = tmp_path / "third.yaml"
    third.write_text(small.read_text())
    switchkd(monkeypatch, "ablate", third, "--rows", "switch-kd")
    assert folder(tmp_path, "third/switch-kd/seed0").info()["reused"]["from"] == "other/both/seed0"


def test_a_second_call_trains_and_scores_nothing(tmp_path, recipes, monkeypatch, capsys):
    switchkd(monkeypatch, "ablate", *recipes)
    before = trained(tmp_path)
    capsys.readouterr()
    assert switchkd(monkeypatch, "ablate", *recipes) == 0
    assert trained(tmp_path) == before
    assert (tmp_path / "runs" / "scored").read_text() == "small\n"
    assert "5 of 5 runs finished before, reused" in capsys.readouterr().err


def test_a_recipe_that_comes_later_takes_over_what_is_there(tmp_path, recipes, monkeypatch, capsys):
    small, other = recipes
    switchkd(monkeypatch, "ablate", small)
    capsys.readouterr()
    assert switchkd(monkeypatch, "ablate", other) == 0
    assert trained(tmp_path) == ["other/align/0", "small/sft/0", "small/switch-kd/0"]
    err = capsys.readouterr().err
    assert "other/both/seed0: the same run as small/switch-kd/seed0, reused" in err
    assert "2 of 3 done, 1 running" in err or "3 of 3 done" in err


def test_distill_takes_over_what_another_recipe_has_made(tmp_path, calls, recipes, monkeypatch, capsys):
    small, other = recipes
    switchkd(monkeypatch, "ablate", other)
    assert switchkd(monkeypatch, "distill", small) == 0
    assert not any("small" in line for line in trained(tmp_path))
    assert "Switch-KD (seed 0): the same run as other/both/seed0, reused" in capsys.readouterr().err
    assert places(calls[-1][1][0]) == ["small/switch-kd/seed0", "small/sft/seed0"]


def test_overwrite_trains_what_is_shared_once_more_and_only_once(tmp_path, recipes, monkeypatch):
    switchkd(monkeypatch, "ablate", *recipes, "--rows", "switch-kd,both")
    assert switchkd(monkeypatch, "ablate", *recipes, "--rows", "switch-kd,both", "--overwrite") == 0
    assert trained(tmp_path) == ["small/switch-kd/0", "small/switch-kd/0"]
    source, taken = folder(tmp_path, "small/switch-kd/seed0"), folder(tmp_path, "other/both/seed0")
    assert taken.results.samefile(source.results)
    for old in ("small/switch-kd/old-seed0-1", "other/both/old-seed0-1"):
        assert folder(tmp_path, old).info()["status"] == "finished"


def test_a_shared_run_that_fails_is_tried_once_and_reported_under_all_its_names(tmp_path, recipes, monkeypatch, capsys):
    small, other = recipes
    small.write_text(small.read_text() + LONG)
    other.write_text(other.read_text() + LONG.replace("long", "longer"))
    assert switchkd(monkeypatch, "ablate", small, other, "--jobs", 2) == 1
    err = capsys.readouterr().err
    assert err.count("ZeroDivisionError: the crash of this row") == 1
    assert "small: long (seed 0): failed" in err
    assert "the same run under other names failed with it: other/longer" in err
    assert err.splitlines()[-1] == "2 of 7 runs failed; the same command tries again"
    assert {f.place for f in run_folder.finished(tmp_path / "runs")} == {
        "small/switch-kd/seed0",
        "small/sft/seed0",
        "other/both/seed0",
        "other/align/seed0",
        "other/sft/seed0",
    }


LONG = "  long: {drop: [vsd], set: {stages.distill.steps: 20}}\n"


def test_all_folders_that_hold_another_run_are_named_before_any_run_starts(tmp_path, recipes, monkeypatch, capsys):
    small, other = recipes
    held = load(small, "sft", ["stages.distill.steps=3"]), load(other, "both", ["stages.distill.steps=3"])
    for run in held:
        with claim_folder(tmp_path / "runs", run):
            pass
    assert switchkd(monkeypatch, "ablate", small, other) == 2
    *taken, hint = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in taken] == ["runs/small/sft/seed0", "runs/other/both/seed0"]
    assert "--overwrite" in hint
    assert not (tmp_path / "runs" / "trained").exists()
    assert [run_folder.folder(tmp_path / "runs", run).info()["key"] for run in held] == [run.key for run in held]


def test_interrupted_runs_of_other_versions_are_named_before_any_run_starts(tmp_path, recipes, monkeypatch, capsys):
    small, other = recipes
    root = tmp_path / "runs"
    for run in (load(small, "sft"), load(other, "align"), load(other, "both")):
        with suppress(KeyboardInterrupt), claim_folder(root, run) as (begun, _):
            checkpoints.mark(begun, "distill")
            raise KeyboardInterrupt
        write_json(begun.record, {**begun.info(), "versions": {"torch": "1.0"}})
    assert switchkd(monkeypatch, "ablate", small, "--rows", "switch-kd") == 0  # other/both is the same run
    done = trained(tmp_path)
    capsys.readouterr()
    assert switchkd(monkeypatch, "ablate", small, other) == 2
    *problems, hint = capsys.readouterr().err.splitlines()
    assert {line.split(":")[0] for line in problems} == {"runs/small/sft/seed0", "runs/other/align/seed0"}
    assert any("and begun with torch 1.0, now" in line for line in problems) and "--resume" in hint
    assert trained(tmp_path) == done
    assert switchkd(monkeypatch, "ablate", small, other, "--resume") == 0


def test_rows_are_taken_where_they_exist(tmp_path, recipes, monkeypatch):
    assert switchkd(monkeypatch, "ablate", *recipes, "--rows", "sft,align") == 0
    assert {f.place for f in run_folder.finished(tmp_path / "runs")} == {
        "small/sft/seed0",
        "other/align/seed0",
        "other/sft/seed0",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("small.yaml", "other.yaml", "--rows", "sft,alone"),
            [
                "small.yaml: row: unknown row, got 'alone' (known: switch-kd, sft)",
                "other.yaml: row: unknown row, got 'alone' (did you mean 'align'?)",
            ],
        ),
        (
            ("small.yaml", "other.yaml", "--rows", "align"),
            ["small.yaml: has none of the rows align (known: switch-kd, sft)"],
        ),
        (("small.yaml", "small.yaml"), ["small: small.yaml, small.yaml: recipes of one name"]),
        (("small.yaml", "./sub/small.yaml"), ["small: small.yaml, sub/small.yaml: recipes of one name"]),
        (
            ("smal.yaml", "compnents"),
            [
                "smal.yaml: no such recipe (did you mean 'small.yaml'?)",
                "compnents: no recipe has this name (did you mean 'components'?)",
            ],
        ),
        (
            ("smal.yaml", "othr.yaml"),
            [
                "smal.yaml: no such recipe (did you mean 'small.yaml'?)",
                "othr.yaml: no such recipe (did you mean 'other.yaml'?)",
            ],
        ),
        (
            ("small.yaml", "other.yaml", "stages.distill.lr"),
            ["override: stages.distill.lr: must be key=value, such as stages.distill.lr=1e-4"],
        ),
        (("stages.distill.lr=1e-4",), ["ablate: names no recipe"]),
    ],
)
def test_wrong_input_is_reported_for_all_recipes_and_nothing_is_written(
    tmp_path, recipes, monkeypatch, capsys, arguments, expected
):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "small.yaml").write_text(recipes[0].read_text())
    assert switchkd(monkeypatch, "ablate", *arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if not line.startswith("hint: ")] == expected
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", named_files.recipes())
def test_every_name_of_a_recipe_names_it(name, monkeypatch):
    """`table1-0.5b` has a dot, as the changes have; underscores are as good."""
    asked = []

    def load_many(names, rows, changes, *_):
        asked.append((names, changes))
        raise UserError("seen")

    monkeypatch.setattr("switchkd_cli.commands.train.load_many", load_many)
    for word in (name, name.replace("-", "_")):
        assert switchkd(monkeypatch, "ablate", word, "stages.distill.lr=1e-4", "--check") == 2
        assert asked.pop() == ([word], ["stages.distill.lr=1e-4", "check=true"])


def test_changes_are_for_every_recipe(tmp_path, recipes, monkeypatch):
    assert switchkd(monkeypatch, "ablate", "stages.distill.lr=5e-4", *recipes, "--rows", "sft") == 0
    for place in ("small/sft/seed0", "other/sft/seed0"):
        assert folder(tmp_path, place).run().config.stages[1].lr == 5e-4


PROGRAM = """
import sys
from tests.support import fake_engine
fake_engine.install()
from switchkd_cli import cli
from switchkd_cli.scheduler import pool
pool.WORKER = (sys.executable, fake_engine.__file__)
cli.main()
"""


def test_after_an_interrupt_the_same_command_resumes(tmp_path, recipes):
    def started():
        command = [sys.executable, "-c", PROGRAM, "ablate", *map(str, recipes), "--jobs", "2"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    hold = tmp_path / "runs" / "hold"
    hold.parent.mkdir()
    hold.touch()
    process = started()
    log = hold.with_name("trained")
    for _ in range(3000):
        if log.exists():
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("resume: switchkd ablate ")
    hold.unlink()
    process = started()
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    assert {f.place for f in run_folder.finished(tmp_path / "runs")} == {
        *(f"small/{row}/seed0" for row in ("switch-kd", "sft")),
        *(f"other/{row}/seed0" for row in ("both", "align", "sft")),
    }
