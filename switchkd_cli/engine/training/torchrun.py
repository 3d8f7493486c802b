"""Starting the processes of one training on this machine, with torch's elastic agent (the one behind torchrun).

It looks after them: when one ends badly, the others are ended at once; a signal is handed on, and they are given time to
save. None is started again: a run goes on from its checkpoint when it is started again by hand or by the scheduler.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from switchkd_cli.distributed import exit_status
from switchkd_cli.distributed.cpu_cores import cores
from switchkd_cli.distributed.launch_config import Spread
from switchkd_cli.distributed.signals import SIGNALS, Stopped
from switchkd_cli.engine.training.processes import MEETING, meeting
from switchkd_cli.errors import CRASH, MACHINE, UserError

SAVING = "3600"  # seconds that processes have to save when they are asked to stop
TAIL = 15  # lines of a process's output that are shown


def launch(command: Sequence[str], spread: Spread) -> None:
    """Runs `command` (of this Python) in every process of this machine; the first one prints where this one does.

    Raises what the first process that failed left behind; Stopped when a signal ended them.
    """
    if spread.gpus and (there := torch.cuda.device_count()) < spread.each:
        raise UserError(
            f"--gpus {spread.each}: this machine has {there or 'no'} GPU{'s' * (there != 1)} that torch can use",
            hint=f"--gpus {there}"
            if there
            else f"--processes {spread.each} trains on the processors (slowly)",
            code=MACHINE,
        )
    _silence()
    with (
        tempfile.TemporaryDirectory(prefix="switchkd-") as scratch,
        _environment(spread, scratch),
        _handlers(),
    ):
        try:
            with (
                nullcontext()
                if spread.nodes == 1
                else meeting(f"machine {spread.node} of {spread.nodes}", spread.meet, after=0)
            ):
                launch_agent(_config(spread, Path(scratch)), sys.executable, list(command))
        except ChildFailedError as failed:
            raise _cause(failed, spread, Path(scratch)) from None
        except SignalException as asked:
            for child in psutil.Process().children(
                recursive=True
            ):  # none is left, but for an impatient Ctrl-C
                child.kill()
            words = exit_status.read(Path(scratch))
            raise Stopped(asked.sigval, next((w.text for w in words if w.signal), "")) from None


def _silence() -> None:
    """What the agent logs, we say; its loggers don't ask their parents."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _config(spread: Spread, scratch: Path) -> LaunchConfig:
    shown = 0 if spread.node == 0 else None
    redirects = {rank: Std.ALL for rank in range(spread.each) if rank != shown}
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    if spread.nodes > 1:
        meeting = {
            "rdzv_backend": "static",
            "rdzv_endpoint": spread.meet,
            "rdzv_configs": {"rank": spread.node, "timeout": MEETING},
        }
    # before torch 2.9 the agent can't be given the signals: it handles these, and SIGQUIT
    given = {"signals_to_handle": ",".join(number.name for number in SIGNALS)}
    return LaunchConfig(
        min_nodes=spread.nodes,
        max_nodes=spread.nodes,
        nproc_per_node=spread.each,
        run_id=uuid.uuid4().hex if spread.nodes == 1 else "switchkd",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "output"), redirects=redirects),
        **{name: value for name, value in given.items() if name in LaunchConfig.__dataclass_fields__},
        **meeting,
    )


@contextmanager
def _environment(spread: Spread, scratch: str) -> Iterator[None]:
    """What the processes find in their environment beside torch's own variables."""
    given = {
        exit_status.FOLDER: scratch,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": SAVING,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // spread.each))),
    }
    if not spread.gpus:
        given |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _handlers() -> Iterator[None]:
    """The agent has signal handlers of its own, and leaves them behind."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(failed: ChildFailedError, spread: Spread, scratch: Path) -> BaseException:
    """Why the processes ended: the earliest thing that is no consequence of another's end."""
    words = exit_status.read(scratch)
    killed = {r: f for r, f in failed.failures.items() if f.exitcode < 0 and -f.exitcode != signal.SIGTERM}
    if words and not words[0].follows and words[0].signal is None:
        return words[0].error(spread.count)
    if killed:
        rank, failure = next(iter(killed.items()))
        return _killed(rank, failure, spread, scratch)
    if words:
        return words[0].error(spread.count)
    rank, failure = failed.get_first_failure()
    return _killed(rank, failure, spread, scratch)


def _killed(rank: int, failure: ProcessFailure, spread: Spread, scratch: Path) -> UserError:
    """A process that could say nothing itself."""
    ended, hint = f"exit code {failure.exitcode}", ""
    if failure.exitcode < 0:
        ended = f"ended by signal {-failure.exitcode} ({signal.strsignal(-failure.exitcode)})"
    if -failure.exitcode == signal.SIGKILL:
        hint = "a process that is killed most likely wanted more memory than there is: a smaller micro_batch needs less"
    told = [
        line
        for file in sorted(scratch.glob(f"output/*/attempt_0/{failure.local_rank}/stderr.log"))
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    ]
    return UserError(
        [f"process {rank} of {spread.count}: {ended}; the others were ended", *told], hint, CRASH
    )
