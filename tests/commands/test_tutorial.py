"""The tutorial, as it stands: each file that it says to save is saved, and each of its commands run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from switchkd_cli.recipe.load import load_rows
from tests.support import forked

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps():
    """Yields (file name, its content) and ("", a command), in the order of the page."""
    for block in BLOCKS.finditer(TEXT):
        language, content = block.groups()
        names = re.findall(r"Save (?:it|this) as\s+`([\w.]+)`", TEXT[: block.start()])
        if language:
            yield names[-1], content
        elif not content.startswith("mine/"):
            yield from (("", command) for command in content.splitlines())


def test_the_recipe_of_the_tutorial_is_accepted(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(dict(steps())[file.name], encoding="utf-8")
    assert [run.row for run in load_rows(file, [None], controls=True)] == ["switch-kd", "sft"]


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path):
    printed = {}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, content in steps():
        if name:
            (tmp_path / name).write_text(content, encoding="utf-8")
            continue
        program, *words = shlex.split(content)
        if program == "switchkd":
            done = forked.switchkd(
                *words, cwd=tmp_path
            )  # workers start anew: a fork would inherit the locks of datasets
            assert done.end() == 0, f"{content}\n{done.text}"
            printed[content] = done.out
            continue
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            content, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"
        printed[content] = done.stdout
    assert "300 rows" in printed["switchkd distill mine.yaml --dry-run"]
    assert "gain: Switch-KD minus SFT" in printed["switchkd distill mine.yaml"]
    assert "paired by seed" in printed["switchkd ablate mine.yaml --seeds 3"]
    assert "95 % items" in printed["switchkd compare mine.yaml"]
    assert printed["python ask.py"].strip()
