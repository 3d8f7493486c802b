"""Nothing hangs: when an awaited process dies, stops or falls silent, the wait ends with a line that says so."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial

import numpy as np
import psutil
import pytest
from PIL import Image
from torch.utils.data import DataLoader, _utils

from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.launch_config import LaunchConfig
from switchkd_cli.engine import run_stages
from switchkd_cli.engine.training import data_loader
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.files import atomic
from switchkd_cli.files.atomic import hold
from switchkd_cli.scheduler import launch
from tests.support import forked, tiny, tiny_run
from tests.support.forked import steps, switchkd

SOON = 120  # seconds that a process has to end, on a machine that is busy with other tests


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch):
    monkeypatch.setattr(stopping, "_signal", None)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # seconds that torch gives each worker to end


# --- processes that prepare data


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def without_shared_memory():
    os.kill(os.getpid(), signal.SIGBUS)


def left():
    os._exit(5)


def asleep():
    time.sleep(1e6)


class Rows:
    """Five rows that are there, and one that its process does not survive."""

    def __init__(self, fate):
        self.fate = fate

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 5:
            self.fate()
        return index


def micro_batches(fate, tell=lambda text: None):
    batches = DataLoader(Rows(fate), batch_size=1, collate_fn=partial(data_loader._pickled, list), num_workers=1)
    return data_loader.Loader(batches, "distill", tell)


FATES = {
    stopped: "no data for 3 seconds: process {pid} stopped",
    asleep: "no data for 3 seconds: process {pid} sleeping",
    killed: "data worker {pid} was killed by signal: Killed; most likely it ran out of memory",
    without_shared_memory: "data worker {pid} was killed by signal: Bus error; /dev/shm: ",
    left: "data worker {pid} exited unexpectedly",
}


SLOW = [stopped, asleep]  # they are waited for


@pytest.mark.parametrize(
    "fate", [pytest.param(f, id=f.__name__, marks=[pytest.mark.slow] * (f in SLOW)) for f in FATES]
)
def test_a_process_that_prepares_data_is_missed_and_named(fate, monkeypatch):
    monkeypatch.setattr(data_loader, "WARN_AFTER", 2)
    monkeypatch.setattr(data_loader, "GIVE_UP_AFTER", 3)
    told, got = [], []
    with closing(micro_batches(fate, told.append)) as batches:
        (process,) = batches._batches._workers
        with pytest.raises(UserError) as error:
            got += batches
    expected = FATES[fate].format(pid=process.pid)
    assert error.value.problems[0].startswith(f"stages.distill: {expected}")
    assert error.value.code == MACHINE and "stages.distill.workers=0" in error.value.hint
    assert told == ([f"none for 2 seconds: {expected.partition(': ')[2]}"] if "no data" in expected else [])
    process.join(SOON)
    assert not process.is_alive()


@pytest.mark.slow
def test_who_waits_for_data_can_be_stopped(monkeypatch):
    with closing(micro_batches(asleep)) as batches:  # one that stops may keep its last row for ever
        assert data_loader.next_micro_batches(batches, 5) == [[0], [1], [2], [3], [4]]
        monkeypatch.setattr(stopping, "_signal", signal.SIGTERM)
        assert data_loader.next_micro_batches(batches, 1) == []


def test_processes_that_can_t_be_started_are_reported(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_loader.multiprocessing, "Lock", full)
    with pytest.raises(UserError, match="1 data workers can't be started: .*No space"):
        micro_batches(left)


def tall_rows(folder, count=24):
    """Rows with pictures of which a batch of eight takes 900 KiB."""
    draw = np.random.default_rng(0)
    for n in range(count):
        Image.fromarray(draw.integers(0, 255, (96, 96, 3), np.uint8)).save(folder / f"{n}.png")
    return [tiny.row(str(n), f"{n}.png", ("What is it?", "a dog")) for n in range(count)]


def recipe_of(folder, **distill):
    student = tiny_run.STUDENT | {"vision": {"fresh": tiny.VISION | {"image_size": 96, "patch_size": 24}}}
    distill = {"batch": 8, "micro_batch": 8, "steps": 6, "workers": 2, **distill}
    return tiny_run.write(folder, teacher=False, rows=tall_rows(folder), student=student, distill=distill)


@pytest.mark.slow
def test_little_shared_memory_changes_nothing(tmp_path):
    """A container has 64 MiB: here one of 256 KiB, in which no batch has room."""
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "-"]
    try:
        if subprocess.run([*small, "true"], check=False, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
    except FileNotFoundError:
        pytest.skip("no file system may be mounted here")
    recipe = recipe_of(tmp_path)
    program = [sys.executable, "-m", "switchkd_cli", "distill", str(recipe), "--out", "small"]
    ended = subprocess.run([*small, *program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    alone = switchkd("distill", recipe, "stages.distill.workers=0", "--out", tmp_path / "alone", cwd=tmp_path)
    assert alone.end() == 0, alone.text
    assert tiny_run.trace(folder(tmp_path / "small")) == tiny_run.trace(folder(tmp_path / "alone"))


def folder(root):
    return root / "tiny" / "switch-kd" / "seed0"


@pytest.mark.slow
def test_a_signal_ends_a_training_whose_data_has_stopped(tmp_path):
    recipe, root = recipe_of(tmp_path, steps=10_000), tmp_path / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path)
    program.when(lambda: steps(folder(root)) >= 5)
    for child in psutil.Process(program.process.pid).children():
        child.suspend()
    logged = -1
    while logged != (logged := steps(folder(root))):  # what was prepared before is trained on
        time.sleep(2)
    program.process.terminate()
    assert program.end() == 143, program.text
    assert f"stopped: SIGTERM: stage distill, after step {logged - 3} of 10000: saved" in program.text


# --- a process that gets a second stop signal


def locked_in():
    """A call that no signal interrupts."""
    system, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    system.pthread_mutex_lock(mutex)
    system.pthread_mutex_lock(mutex)


def spinning():
    while True:
        time.sleep(0.05)


def busy(ready, call):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    stopping.GRACE = 1.0
    try:
        with stopping.stop_on_signals(), stopping.deferred():
            ready.set()
            call()
    except stopping.Stopped as stopped:
        os._exit(stopped.code + 1)  # told apart from one that was ended


@pytest.mark.parametrize(("call", "more"), [(locked_in, 0), (spinning, 1)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_who_asks_twice_is_heard_wherever_the_program_is(call, more, number):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test under nohup ignores it
    ready = forked.FORK.Event()
    process = forked.FORK.Process(target=busy, args=(ready, call))
    process.start()
    signal.signal(signal.SIGHUP, before)
    assert ready.wait(SOON)
    os.kill(process.pid, number)
    time.sleep(stopping.REPEAT_AFTER + 0.5)
    os.kill(process.pid, number)
    process.join(SOON)
    assert process.exitcode == 128 + number + more


def test_a_signal_that_comes_at_once_a_second_time_is_the_same_request():
    """As one to a group that its launcher hands on: the step is finished all the same."""
    ready, sent = forked.FORK.Event(), forked.FORK.Event()

    def step():
        stopping.REPEAT_AFTER = 1e9
        sent.wait(SOON)
        os._exit(7)

    process = forked.FORK.Process(target=busy, args=(ready, step))
    process.start()
    assert ready.wait(SOON)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGHUP)
    sent.set()
    process.join(SOON)
    assert process.exitcode == 7


# --- threads, which wait for one another


@pytest.mark.slow
def test_a_run_resumes_with_the_threads_that_it_began_with(tmp_path):
    recipe, expected, root = tiny_run.write(tmp_path, teacher=False), tmp_path / "expected", tmp_path / "runs"

    def threads(number):
        run_stages.THREADS = number

    def start(root, number):
        return switchkd("distill", recipe, "--out", root, cwd=tmp_path, first=partial(threads, number))

    assert start(expected, 1).end() == 0
    program = start(root, 1)
    program.when(lambda: steps(folder(root)) >= 5)
    program.process.kill()
    program.end()
    again = start(root, 2)
    assert again.end() == 0, again.text
    assert "threads: 1, as it began with, in place of 2" in again.text
    record = json.loads((folder(root) / "run.json").read_text())
    assert record["threads"] == 1
    lines = [line for line in tiny_run.trace(folder(root)) if line.get("event") != "threads"]
    assert lines == tiny_run.trace(folder(expected))


# --- who holds what is waited for


def holding(path, ready):
    with hold(path):
        ready.set()
        time.sleep(SOON)


@pytest.fixture
def held(tmp_path):
    """A path that another process holds, and that process."""
    ready = forked.FORK.Event()
    process = forked.FORK.Process(target=holding, args=(tmp_path / "it", ready))
    process.start()
    assert ready.wait(SOON)
    yield tmp_path / "it", process
    process.kill()
    process.join()


def test_who_waits_for_a_lock_learns_who_holds_it_and_gets_it_when_that_one_dies(held, monkeypatch):
    path, process = held
    monkeypatch.setattr(atomic, "TELL_AFTER", 1)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    told = []

    def tell(text):
        told.append(text)
        process.kill()

    with hold(path, tell=tell):
        pass
    on = f"process {process.pid} on {socket.gethostname()} (stopped: kill -CONT {process.pid} lets it continue)"
    assert told == [f"waiting for it, held by {on}; Ctrl-C ends the wait"]


def test_who_doesn_t_wait_learns_it_too(held):
    path, process = held
    with pytest.raises(UserError, match=f"process {process.pid} on "), hold(path, wait=False):
        pass


def test_who_waits_for_a_lock_hears_a_signal(held, monkeypatch):
    path, _ = held
    monkeypatch.setattr(atomic, "TELL_AFTER", 1)
    with (
        pytest.raises(stopping.Stopped),
        stopping.stop_on_signals(),
        hold(path, tell=lambda _: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        pass


# --- a process whose parent has ended


@pytest.mark.slow
def test_the_runs_of_an_ablation_that_is_killed_save_and_end(tmp_path):
    recipe, root = tiny_run.write(tmp_path, teacher=False, distill={"steps": 10_000}), tmp_path / "runs"
    program = switchkd("ablate", recipe, "--jobs", 1, "--out", root, cwd=tmp_path)
    program.when(lambda: steps(folder(root)) >= 5)
    workers = psutil.Process(program.process.pid).children(recursive=True)
    program.process.kill()
    assert program.end() == -signal.SIGKILL
    assert workers and not psutil.wait_procs(workers, timeout=SOON)[1]
    record = json.loads((folder(root) / "run.json").read_text())
    assert record["status"] == "interrupted" and record["error"].endswith("saved")


# --- a launcher


def test_a_launcher_is_asked_to_end_what_it_started(tmp_path, monkeypatch):
    """DeepSpeed's, killed, would leave its processes on the other machines."""
    script = f"trap 'echo asked > {tmp_path}/asked; exit 1' TERM; touch {tmp_path}/up; while true; do sleep 0.05; done"
    monkeypatch.setattr(launch, "deepspeed_command", lambda *_: ["sh", "-c", script])

    def ask():
        while not (tmp_path / "up").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(stopping.Stopped), stopping.stop_on_signals():
        launch.start_processes(LaunchConfig(1, hostfile=tmp_path / "hosts"))
    assert (tmp_path / "asked").exists()
