"""The commands as a user types them, each in a process of its own: help, dry runs, wrong input."""

import json
import os
import subprocess
import sys

import pytest

from switchkd_cli.recipe.load import load
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import claim_folder
from tests.support import forked
from tests.support.small_recipe import write

HEAVY = ("torch", "transformers", "deepspeed", "lmms_eval", "accelerate", "datasets", "matplotlib")
PROGRAM = f"""
import sys
from switchkd_cli.cli import main
try:
    main()
finally:
    print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def switchkd(*arguments, cwd, **environment):
    """Run the program; nothing heavy may be imported by what these tests ask."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=cwd,
        check=False,
        capture_output=True,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
        errors="replace",  # typer writes UTF-8 where it takes the encoding for a mistake
        env={**os.environ, **environment},
        timeout=300,
    )
    *lines, imported = done.stderr.splitlines()
    assert imported == "HEAVY []", done.stderr
    return done.returncode, done.stdout, lines


def planned(*arguments, **how):
    """Run the program with --dry-run, forked: a plan that comes to its end needs the engine."""
    program = forked.switchkd(*arguments, "--dry-run", **how)
    return program.end(), program.out, program.err.splitlines()


COMMANDS = ("pretrain", "distill", "ablate", "eval", "compare", "export")


def test_help_names_every_command(tmp_path):
    code, out, _ = switchkd("--help", cwd=tmp_path)
    assert code == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_without_arguments_there_is_help(tmp_path):
    code, _, err = switchkd(cwd=tmp_path)
    assert code == 2 and "Commands:" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_shows_an_example(tmp_path, command):
    code, out, _ = switchkd(command, "--help", cwd=tmp_path)
    assert code == 0
    assert f"Example: switchkd {command} " in " ".join(out.split())


def test_version(tmp_path):
    assert switchkd("--version", cwd=tmp_path)[:2] == (0, "switchkd 0.1.0\n")


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path):
    file = write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = planned("distill", file, "stages.distill.lr=2e-4", "--seed", 3, cwd=tmp_path)
    assert (code, err) == (0, [])
    assert "small, row switch-kd: Switch-KD" in out and "small, row sft: SFT" in out
    assert "trains   vision x0.3, projector, language, lr 0.0002, cosine" in out
    assert "0.5 x dbild(switch, teacher) on answer" in out
    assert "computes student, switch, teacher" in out
    assert f"{tmp_path / 'runs' / 'small' / 'switch-kd' / 'seed3'} (new)" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_says_what_would_be_reused(tmp_path):
    file = write(tmp_path)
    run, root = load(file), tmp_path / "runs"
    with run_folder.stage(root, run.stage_key(0)).build():
        pass
    with claim_folder(root, run):
        pass
    _, out, _ = planned("distill", file, cwd=tmp_path)
    assert "seed0 (finished: would be reused)" in out
    assert "pretrain, 4 steps of 8 rows from captions, reused" in out


def test_pretrain_plans_the_leading_stages(tmp_path):
    _, out, _ = planned("pretrain", write(tmp_path), cwd=tmp_path)
    assert "stage    pretrain" in out and "stage    distill" not in out


def test_ablate_plans_its_rows_and_seeds(tmp_path):
    _, out, err = planned("ablate", write(tmp_path), "--rows", "sft,long", "--seeds", 3, cwd=tmp_path)
    assert "row sft" in out and "row long" in out and "row switch-kd" not in out
    assert err == ["seeds: 0, 1, 2 (the figures are of the first)", "runs: 6, of them 6 different; 0 finished"]


def test_ablate_plans_what_recipes_share_once(tmp_path):
    file = write(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text().replace("  sft:", "  plain:").replace("[sft]", "[plain]"))
    with claim_folder(tmp_path / "runs", load(other, "plain", seed=1)):
        pass
    code, out, err = planned("ablate", file, other, "--rows", "sft,plain", "--seeds", 2, cwd=tmp_path)
    assert code == 0 and out.count("computes student") == 2  # two stages of one run
    assert "other, row plain: SFT\n         the same run as small, row sft\n" in out
    assert err == ["seeds: 0, 1 (the figures are of the first)", "runs: 4, of them 2 different; 1 finished"]


def test_a_name_stands_for_a_recipe_of_the_folder(tmp_path):
    (tmp_path / "recipes").mkdir()
    write(tmp_path).rename(tmp_path / "recipes" / "training_scheme.yaml")
    code, out, _ = planned("ablate", "training-scheme", cwd=tmp_path)
    assert code == 0 and "training_scheme, row sft" in out


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        (
            ("lr_scale", "lr_scal"),
            (),
            ":13: stages.distill.lr_scal: unknown key, got 'lr_scal' (did you mean 'lr_scale'?)",
        ),
        (
            ("loss: dbild, of", "loss: dbidl, of"),
            (),
            ":19: stages.distill.objective.vsd.loss: unknown loss, got 'dbidl' (did you mean 'dbild'?)",
        ),
        (("steps: 10", "steps: ten"), (), ":15: stages.distill.steps: must be a whole number, got 'ten'"),
        (
            (),
            ("stages.distil.lr=1",),
            "override: stages.distil.lr: no such field in stages, got 'distil' (did you mean 'distill'?)",
        ),
        ((), ("stages.distill.lr",), "override: stages.distill.lr: must be key=value, such as stages.distill.lr=1e-4"),
        ((), ("student.vision=runs/a/b/model",), "small: student.vision: runs/a/b/model: no such folder"),
        ((), ("student.vision=./none",), "small: student.vision: ./none: no such folder"),
        (
            (),
            ("student.vision=playground:towel",),
            "small: student.vision: playground:towel: no such model in this package",
        ),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(tmp_path, change, arguments, expected):
    file = write(tmp_path, *[change] if change else [])
    before = sorted(tmp_path.rglob("*"))
    code, out, err = switchkd("distill", file, *arguments, cwd=tmp_path)
    assert code == 2 and out == ""
    assert [line.removeprefix(str(file)) for line in err if not line.startswith("hint: ")] == [expected]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("distill", "small.yaml", "--row", "swich-kd"),
            "small.yaml: row: unknown row, got 'swich-kd' (did you mean 'switch-kd'?)",
        ),
        (("pretrain", "small.yaml", "--row", "stf"), "small.yaml: row: unknown row, got 'stf' (did you mean 'sft'?)"),
        (
            ("ablate", "small.yaml", "--rows", "sft,lung"),
            "small.yaml: row: unknown row, got 'lung' (did you mean 'long'?)",
        ),
        (("ablate", "small.yaml", "--rows", ","), "--rows: names no row"),
        (("distill", "smal.yaml"), "smal.yaml: no such recipe (did you mean 'small.yaml'?)"),
        (("distill", "."), ".: no recipe has this name"),
        (("ablate", "trainning-scheme"), "trainning-scheme: no recipe has this name (did you mean 'training-scheme'?)"),
        (("pretrain", "wieghts"), "wieghts: no recipe has this name (did you mean 'weights'?)"),
        (("eval",), "runs: no finished run"),
        (("eval", "--benchmarks", "mme,popes"), "--benchmarks: unknown benchmark, got 'popes' (did you mean 'pope'?)"),
        (
            ("eval", "--model", "m", "--world", "hub", "--benchmarks", "mme,swap"),
            "--benchmarks: exists only in the playground, got 'swap' with world: hub",
        ),
        (("eval", "--model", "./none"), "./none: no such folder"),
        (
            ("eval", "--metric", "exact"),
            "--data and --metric go together: rows, and how answers to them are scored (exact, anls ...)",
        ),
        (("eval", "--reader", "strict"), "--reader: needs --rescore RUN, the run whose answers are read again"),
        (("compare",), "runs: no finished run with scores"),
        (("compare", "small"), "small: neither a run folder, nor the folder that switchkd eval named, nor a recipe"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path, arguments, expected):
    write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = switchkd(*arguments, cwd=tmp_path)
    assert code == 2 and out == ""
    assert err[0] == expected, err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_name_is_answered_with_all_names(tmp_path):
    code, out, err = switchkd("ablate", "losses", "--seeds", 2, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err[0] == "losses: no recipe has this name (did you mean 'loss'?)"
    listed = err[1].removeprefix("hint: a recipe's file, or one of ").split(", ")
    paper = {"training-scheme", "components", "loss", "knee", "visual-encoder", "teacher-size", "weights"}
    assert paper | {"quickstart", "table1-0.5b"} <= set(listed)


def test_the_names_of_the_folder_one_stands_in_are_known_too(tmp_path):
    (tmp_path / "recipes").mkdir()
    write(tmp_path).rename(tmp_path / "recipes" / "my_own.yaml")
    _, _, err = switchkd("distill", "my-one", cwd=tmp_path)
    assert err[0] == "my-one: no recipe has this name (did you mean 'my-own'?)"
    code, out, _ = planned("distill", "my_own", cwd=tmp_path)
    assert code == 0 and "my_own, row switch-kd" in out


def test_a_recipe_of_the_package_is_found_where_there_is_no_recipes_folder(tmp_path):
    code, out, err = planned("distill", "recipes/quickstart.yaml", cwd=tmp_path)
    assert code == 0 and "quickstart, row switch-kd" in out
    assert err[0].startswith("recipes/quickstart.yaml: not in this folder, read from the package: ")
    _, _, err = switchkd("compare", "recipes/quickstart.yaml", cwd=tmp_path)
    assert [line.partition(":")[0] for line in err] == ["recipes/quickstart.yaml", "runs", "hint"]


@pytest.mark.parametrize("name", ["recipes/quickstrat.yaml", "elsewhere/quickstart.yaml"])
def test_no_other_path_stands_for_a_recipe_of_the_package(tmp_path, name):
    code, _, err = switchkd("distill", name, cwd=tmp_path)
    assert code == 2 and err[0].startswith(f"{name}: no such recipe (did you mean 'recipes/quickstart.yaml'?")


def test_the_recipe_that_is_here_comes_first(tmp_path):
    (tmp_path / "recipes").mkdir()
    write(tmp_path).rename(tmp_path / "recipes" / "quickstart.yaml")
    _, out, err = planned("distill", "recipes/quickstart.yaml", cwd=tmp_path)
    assert "row sft" in out and not any("package" in line for line in err)


@pytest.mark.parametrize("command", ["--help", "distill", "eval", "compare"])
def test_a_working_directory_that_was_deleted_is_a_line(tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"import os; os.rmdir({str(gone)!r}){PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, command], cwd=gone, check=False, capture_output=True, text=True
    )
    problem, hint, _ = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert problem.startswith("the working directory can't be used: ") and hint.startswith("hint: cd ")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_whatever_the_terminal_s_encoding_is_all_is_said(tmp_path, encoding):
    file = write(tmp_path, ("Switch-KD", "Größe ±2 – 学")).rename(tmp_path / "größe.yaml")
    told = {"cwd": tmp_path, "PYTHONIOENCODING": encoding}
    code, out, _ = planned("distill", file.name, cwd=tmp_path, encoding=encoding)
    in_it = {"ascii": "Gr\\xf6\\xdfe +-2 - \\u5b66", "iso-8859-1": "Größe ±2 - \\u5b66"}
    assert code == 0 and in_it[encoding] in out, out
    code, _, err = switchkd("distill", "größer.yaml", **told)
    in_it = {"ascii": "gr\\xf6\\xdfer.yaml: no such recipe", "iso-8859-1": "größer.yaml: no such recipe"}
    assert code == 2 and err[0].startswith(in_it[encoding])
    code, _, err = switchkd("größe", **told)
    assert code == 2 and "No such command" in err[-1]


def test_every_error_that_can_be_helped_has_a_hint(tmp_path):
    assert switchkd("eval", cwd=tmp_path)[2] == [
        "runs: no finished run",
        "hint: switchkd distill recipes/quickstart.yaml",
    ]


def test_a_taken_folder_is_refused_before_anything_starts(tmp_path):
    file = write(tmp_path)
    with claim_folder(tmp_path / "runs", load(file, "sft")):
        pass
    before = sorted(tmp_path.rglob("*"))
    code, _, err = switchkd("distill", file, "stages.distill.steps=3", cwd=tmp_path)
    assert code == 2
    assert err[0].startswith("runs/small/sft/seed0: holds another run")
    assert err[1] == "hint: add --overwrite to move it aside, or --out FOLDER to write elsewhere"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["pretrain", "ablate"])
def test_every_command_checks_the_recipe_and_the_models(tmp_path, command):
    file = write(tmp_path)
    code, _, err = switchkd(command, file, "student.vision=./none", cwd=tmp_path)
    assert code == 2 and err[0] == "small: student.vision: ./none: no such folder"
    code, _, err = switchkd(command, file, "stages.distill.lr=fast", cwd=tmp_path)
    assert code == 2 and err == ["override: stages.distill.lr: must be a number, got 'fast'"]
    assert not (tmp_path / "runs").exists()


def test_markup_in_a_message_is_text(tmp_path):
    file = write(tmp_path, ("title: small", "title: [student]"), ("data: captions", "data: '[red]captions[/red]'"))
    assert any("got '[red]captions[/red]'" in line for line in switchkd("distill", file, cwd=tmp_path)[2])


def test_our_own_bugs_keep_their_traceback(tmp_path):
    file = write(tmp_path)
    program = "import switchkd_cli.commands.train as c; c.load_rows = None\nfrom switchkd_cli.cli import main; main()"
    command = [sys.executable, "-c", program, "distill", str(file)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "TypeError" in done.stderr


def test_an_interrupt_is_exit_130(tmp_path):
    program = (
        "import switchkd_cli.commands.train as c\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "c.load_rows = stop\nfrom switchkd_cli.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "distill", "x.yaml"]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 130


def test_a_record_keeps_the_command(tmp_path):
    run = load(write(tmp_path))
    program = (
        "from pathlib import Path; from switchkd_cli.runs.claim import claim_folder; from switchkd_cli.recipe.load import load\n"
        "with claim_folder(Path('runs'), load('small.yaml')): pass"
    )
    subprocess.run([sys.executable, "-c", program, "a=1", "--seed", "0"], cwd=tmp_path, check=True)
    record = json.loads(run_folder.folder(tmp_path / "runs", run).record.read_text())
    assert record["command"][1:] == ["a=1", "--seed", "0"]
