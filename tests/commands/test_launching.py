"""The real program in two processes: stopped, resumed, and with one of them dying."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import tiny_run

pytestmark = pytest.mark.slow
STEPS = 400
SOON = 60  # seconds in which a group is gone when one of it died, on a machine that is busy with other tests
PATCH = """\
import os
if os.environ.get("RANK") == "1":
    from switchkd_cli.engine.training import trainer
    take = trainer.Trainer.step
    def step(self, *arguments, **more):
        if self.schedule.last_epoch == 4 and self.stage.name == "distill":
            raise ZeroDivisionError("the second process has an error of its own")
        return take(self, *arguments, **more)
    trainer.Trainer.step = step
"""


@pytest.fixture
def recipe(tmp_path):
    return tiny_run.write(tmp_path, distill={"steps": STEPS}, checkpoints={"every_steps": 5}, deepspeed={"zero": 2})


def start(recipe: Path, *more: str, path: Path | None = None) -> subprocess.Popen:
    words = ["distill", str(recipe), "--out", str(recipe.parent / "runs"), *more]
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{environment['PYTHONPATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "switchkd_cli", *words],
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
        ["switchkd", "distill", str(recipe), "--out"] + [str(recipe.parent / "runs"), "--processes", "2", "--resume"]
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
    assert f"resumes from stage distill, step {done}" in told
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
    assert "hint: a killed process most likely ran out of memory" in told
    assert "Connection" not in told
    assert (folder(recipe) / "checkpoints" / "distill-5").is_dir()


def test_the_error_of_the_process_that_failed_is_the_one_that_is_reported(recipe, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PATCH)
    process = start(recipe, "--processes", "2", path=tmp_path)
    _, told = process.communicate(timeout=10 * SOON)
    assert process.returncode == 1
    assert "ZeroDivisionError: the second process has an error of its own" in told
    assert told.splitlines()[-1] == "process 1 of 2 failed; the others were ended"
    assert told.count("Traceback") == 1
    assert len(steps(recipe)) == 4


FATES = {
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "has given no sign of life"),
    "elsewhere": ("time.sleep(1e6)", "has not come to where the others wait for it"),
}
FATE = """\
import os, signal, sys, time
if "RANK" in os.environ:
    from switchkd_cli.engine.training import processes, trainer
    processes.WARN_AFTER, processes.GIVE_UP_AFTER = 1000, 2000  # a busy machine needs time to start them
    second = os.environ["RANK"] == "1"
    processes.BEAT = 0.05 if second else 0.2  # the first sees a sign of life whenever it looks
    take = trainer.Trainer.step
    def step(self, *arguments, **more):
        if self.schedule.last_epoch == 4 and self.stage.name == "distill":
            processes.WARN_AFTER, processes.GIVE_UP_AFTER = 15, 40
            if second:
                {}
        return take(self, *arguments, **more)
    trainer.Trainer.step = step
"""


@pytest.mark.parametrize("fate", FATES)
def test_a_process_that_falls_silent_is_named_and_ends_the_others(recipe, tmp_path, fate):
    what, said = FATES[fate]
    (tmp_path / "sitecustomize.py").write_text(FATE.format(what))
    process = start(recipe, "deepspeed.zero=0", "--processes", "2", path=tmp_path)
    wait_for(recipe, 4, process)
    silent = of_rank(process, 1).pid
    workers = family(process)
    _, told = process.communicate(timeout=10 * SOON)
    assert process.returncode == 3, told
    assert gone(workers)
    who = f"process 1 of 2 (process {silent} on {socket.gethostname()}) {said} for"
    lines = [line for line in told.splitlines() if line.startswith(who)]
    assert lines == [f"{who} 3 seconds: waiting for it", f"{who} 8 seconds"]
    assert told.splitlines()[-1].startswith("hint: look at its machine")


def test_machines_that_don_t_meet_are_reported(recipe, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    patch = "import os\nfrom switchkd_cli.engine.training import processes\nprocesses.MEETING = 6\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    meet = ("--processes", "1", "--nodes", "2", "--node-rank", "1", "--meet", f"localhost:{port}")
    process = start(recipe, *meet, path=tmp_path)
    _, told = process.communicate(timeout=10 * SOON)
    assert process.returncode == 3, told
    assert "machine 1 of 2: waiting for the others to start, at most 0.1 minutes" in told
    assert f"machine 1 of 2: the others did not start, or can't be reached at localhost:{port}" in told
    assert "Traceback" not in told
