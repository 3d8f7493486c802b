"""`make reproduce`: what it asks of switchkd, and what it says when that fails. A script stands in for the program."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from switchkd_cli.recipe.load import load_many
from switchkd_cli.scheduler.pool import unique_jobs

OURS = {"equal-compute", "mechanisms"}
OTHERS = {"ours", "quickstart", "candidates", "real-vocabulary", "real-vocabulary-pictures"}
UNLIKE = ["unlike-encoder", "unlike-tokenizer"]
ROOT = Path(__file__).resolve().parents[2]
SWITCHKD = """\
#!/bin/sh
echo "$@" >> asked
[ ! -f "fails-$1" ] || exit "$(cat "fails-$1")"
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


@pytest.fixture
def make(tmp_path):
    """Run `make reproduce` in a folder of its own. Returns the exit code, the commands, and the output."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    program = tmp_path / ".venv" / "bin" / "switchkd"
    program.parent.mkdir(parents=True)
    program.write_text(SWITCHKD)
    program.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()

    def made(*variables):
        command = ["make", "reproduce", *variables]
        alone = {"PATH": os.environ["PATH"]}  # make hands its own variables on to the tests that it runs
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60, env=alone)
        asked = tmp_path / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        asked.unlink(missing_ok=True)
        return done.returncode, lines, done.stdout + done.stderr

    return made


def option(line, name):
    words = line.split()
    return words[words.index(name) + 1]


def tables():
    """The paper's tables, and the methods that they are compared with."""
    files = (ROOT / "recipes").glob("*.yaml")
    return {file.stem.replace("_", "-") for file in files} - {*OTHERS, *OURS, *UNLIKE} | {"methods/losses"}


def recipes(line):
    return [word for word in line.partition(" --")[0].split()[1:] if "=" not in word]


def test_all_tables_of_the_embedded_world_with_five_seeds_then_the_report(make):
    code, (ablate, ours, compare), said = make()
    assert code == 0
    assert ablate.startswith("ablate ") and compare.startswith("compare ")
    assert [*recipes(ablate), "ours"] == recipes(compare)
    assert ours == "ablate ours --out runs/reproduce --seed 11 --seeds 10"
    for line in (ablate, compare):
        assert (option(line, "--world"), option(line, "--out")) == ("playground", "runs/reproduce")
    assert option(ablate, "--seeds") == "5"
    ((run, *_),) = load_many(recipes(ablate)[:1], None, world="playground").values()
    assert run.seed == 1  # 0 was for choosing
    assert "--rows" not in ablate
    assert option(compare, "--report") == "reports/playground"
    assert "left out: align-kd" in said


def test_every_recipe_is_in_or_said_to_be_left_out(make):
    _, (ablate, _, _), said = make()
    why = said.split("left out: ")[1].splitlines()[0].split("; ")
    out = [name for reason in why for name in reason.split(":")[0].split(", ")]
    assert sorted([*recipes(ablate), *out]) == sorted([*tables(), *OURS, *UNLIKE])


def test_quick_names_every_recipe_that_it_leaves_out(make):
    _, (ablate, _), said = make("QUICK=1")
    left = {*tables(), *OURS, *UNLIKE, "ours"}.difference(recipes(ablate))
    told = re.split(r"[ ,;:]+", said.partition("left out: ")[2])
    assert left and left <= {*told}


def test_unlike_pairs_have_their_parts_trained_first_and_no_stand_ins(make, tmp_path):
    (tmp_path / "runs/tower/narrow/seed0/model").mkdir(parents=True)
    (tmp_path / "runs/language_bpe/small/seed0/model").mkdir(parents=True)
    (tmp_path / "runs/tower/tower/seed0/model").mkdir(parents=True)
    code, (ablate, _, unlike, compare, compare_unlike), said = make("UNLIKE=1")
    assert code == 0 and "unlike" not in said.split("left out: ")[1].splitlines()[0]
    assert recipes(unlike) == recipes(compare_unlike) == UNLIKE
    assert "--world" in ablate + compare and "--world" not in unlike + compare_unlike
    assert option(unlike, "--seeds") == "5" and option(compare_unlike, "--report") == "reports/playground-unlike"
    shutil.rmtree(tmp_path / "runs/tower")
    _, (*parts, _, _, _, _, _), _ = make("UNLIKE=1")
    assert [line.partition("recipes/playground/")[2] for line in parts] == [
        "tower.yaml --row narrow",
        "tower.yaml --row tower",
    ]


def test_quick_is_one_seed_of_rows_that_exist_and_fit_into_twenty_minutes(make):
    """Two workers, seconds of a row as docs/recipes.md has them."""
    _, (ablate, compare), said = make("QUICK=1")
    assert recipes(ablate) == recipes(compare)
    assert option(ablate, "--seeds") == "1"
    rows = option(ablate, "--rows").split(",")
    tables = load_many(recipes(ablate), rows, world="playground").values()
    assert {run.row for runs in tables for run in runs} == set(rows)
    runs = [entry.run for entry in unique_jobs([run for runs in tables for run in runs], Path())]
    seconds = 120 + sum(_seconds(run) for run in runs)
    assert seconds < 2 * 16 * 60
    assert "left out by QUICK=1: four of five seeds" in said


def _seconds(run):
    """Of training the last stage, as a step of each kind takes, of one stage before it now and then, and of scoring."""
    last = run.config.stages[-1]
    step = 0.5 if "switch" in last.paths else 0.35 if "teacher" in last.paths else 0.2
    return step * last.steps + 10 + 40


def test_the_rows_and_tables_can_be_named(make):
    variables = ("TABLES=loss knee", "ROWS=sft,bild", "SEEDS=2", "JOBS=4", "RUNS=o", "REPORT=r", "CHANGES=a=1 b=2")
    _, (ablate, compare), said = make(*variables)
    assert ablate == "ablate loss knee --world playground a=1 b=2 --out o --rows sft,bild --jobs 4 --seeds 2"
    assert compare == "compare loss knee --world playground --out o --report r"
    assert "left out" not in said


def test_a_row_that_fails_takes_no_report_with_it(make, tmp_path):
    (tmp_path / "fails-ablate").write_text("1")
    code, asked, said = make()
    assert code == 2  # make's own
    assert [line.split()[0] for line in asked] == ["ablate", "ablate", "compare"]
    assert "the same command goes on from here" in said


def test_a_report_that_fails_is_a_failure(make, tmp_path):
    (tmp_path / "fails-compare").write_text("2")
    assert make()[0] == 2


def test_an_interrupt_ends_it(make, tmp_path):
    (tmp_path / "fails-ablate").write_text("130")
    code, asked, _ = make()
    assert code == 2 and [line.split()[0] for line in asked] == ["ablate"]


def test_the_paper_s_world_has_every_table_and_trains_align_kd_s_teacher_first(make, tmp_path):
    code, (teacher, ablate, compare), said = make("WORLD=paper", "JOBS=1")
    assert code == 0
    assert teacher == "ablate align-kd --rows teacher --out runs"
    files = tables()
    assert set(recipes(ablate)) == set(recipes(compare)) == files
    assert "--world" not in ablate + compare and "left out" not in said
    assert (option(ablate, "--out"), option(compare, "--report")) == ("runs", "reports/paper")
    (tmp_path / "fails-ablate").write_text("1")
    code, (_, ablate, compare), _ = make("WORLD=paper")
    assert code == 2 and "align-kd" not in recipes(ablate) + recipes(compare)


def test_quick_is_for_the_embedded_world(make):
    code, asked, said = make("WORLD=paper", "QUICK=1")
    assert code == 2 and asked == [] and "QUICK=1 is for the embedded world" in said
