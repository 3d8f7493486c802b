"""The real program in two processes: stopped, gone on with, and with one of them dying."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import tiny_run

pytestmark = pytest.mark.slow
STEPS = 400
SOON = 60  # seconds in which a group is gone when one of it died, on a machine that is busy with other tests
PATCH = """\
import os
if os.environ.get("RANK") == "1":
    from switchkd_cli.engine import trainer
    take = trainer.Trainer.step
    def step(self, *arguments, **more):
        if self.schedule.last_epoch == 4 and self.stage.name == "distill":
            raise ZeroDivisionError("the second process has an error of its own")
        return take(self, *arguments, **more)
    trainer.Trainer.step = step
"""


@pytest.fixture
def recipe(tmp_path):
    return tiny_run.write(
        tmp_path, distill={"steps": STEPS}, checkpoints={"every_steps": 5}, deepspeed={"zero": 2}
    )


def start(recipe: Path, *more: str, path: Path | None = None) -> subprocess.Popen:
    words = ["distill", str(recipe), "--out", str(recipe.parent / "runs"), *more]
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{environment['PYTHONPATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "switchkd_cli.cli", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=recipe.parent,
    )


def folder(recipe: Path) -> Path:
    return recipe.parent / "runs" / "tiny" / "switch-kd" / "seed0"


def steps(recipe: Path) -> list[dict]:
    """What the last stage logged."""
    metrics = folder(recipe) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return [line for line in lines if line.get("stage") == "distill" and "loss" in line]


def wait_for(recipe: Path, count: int, process: subprocess.Popen) -> None:
    while len(steps(recipe)) < count and process.poll() is None:
        time.sleep(0.05)


def of_rank(process: subprocess.Popen, rank: int) -> psutil.Process:
    children = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=SOON)[1]


def test_two_processes_stop_when_asked_and_one_goes_on(recipe):
    process = start(recipe, "--processes", "2")
    wait_for(recipe, 3, process)
    workers = family(process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, told
    assert gone(workers)
    stopped, resume = told.splitlines()[-2:]
    assert stopped.startswith("stopped: SIGTERM: stage distill, after step ") and stopped.endswith(": saved")
    assert resume == "resume: " + shlex.join(
        ["switchkd", "distill", str(recipe), "--out"]
        + [str(recipe.parent / "runs"), "--processes", "2", "--resume"]
    )
    done = len(steps(recipe))
    assert 0 < done < STEPS
    told = json.loads((folder(recipe) / "deepspeed" / "distill.json").read_text())
    assert told["zero_optimization"]["stage"] == 2 and told["train_batch_size"] == 4
    record = json.loads((folder(recipe) / "run.json").read_text())
    assert record["status"] == "interrupted" and record["command"][0] == "switchkd"
    left = steps(recipe)[-1]["loss"]
    again = start(recipe, "--resume")
    wait_for(recipe, done + 2, again)
    again.send_signal(signal.SIGTERM)
    _, told = again.communicate()
    assert f"goes on from stage distill, step {done}" in told
    assert [line["step"] for line in steps(recipe)][: done + 2] == list(range(1, done + 3))
    assert steps(recipe)[done]["loss"] == pytest.approx(left, rel=0.05)


def test_a_process_that_is_killed_takes_the_other_down_and_is_named(recipe):
    process = start(recipe, "--processes", "2")
    wait_for(recipe, 6, process)
    workers = family(process)
    of_rank(process, 1).kill()
    _, told = process.communicate(timeout=SOON)
    assert process.returncode == 1
    assert gone(workers)
    first = next(line for line in told.splitlines() if not line.startswith("tiny (seed 0)"))
    assert first == "process 1 of 2: ended by signal 9 (Killed); the others were ended"
    assert "hint: a process that is killed most likely wanted more memory" in told
    assert "Connection" not in told
    assert (folder(recipe) / "checkpoints" / "distill-5").is_dir()


def test_the_error_of_the_process_that_failed_is_the_one_that_is_told(recipe, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PATCH)
    process = start(recipe, "--processes", "2", path=tmp_path)
    _, told = process.communicate(timeout=10 * SOON)
    assert process.returncode == 1
    assert "ZeroDivisionError: the second process has an error of its own" in told
    assert told.splitlines()[-1] == "process 1 of 2 failed; the others were ended"
    assert told.count("Traceback") == 1
    assert len(steps(recipe)) == 4
