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
from torch.distributed.launcher.api import LaunchConfig as AgentConfig
from torch.distributed.launcher.api import launch_agent

from switchkd_cli.distributed import exit_status
from switchkd_cli.distributed.cpu_cores import cores
from switchkd_cli.distributed.launch_config import LaunchConfig
from switchkd_cli.distributed.signals import SIGNALS, Stopped
from switchkd_cli.engine.training.processes import MEETING, meeting
from switchkd_cli.errors import CRASH, MACHINE, UserError

SAVING = "3600"  # seconds that processes have to save when they are asked to stop
TAIL = 15  # lines of a process's output that are shown


def launch(command: Sequence[str], config: LaunchConfig) -> None:
    """Runs `command` (of this Python) in every process of this machine; the first one prints where this one does.

    Raises what the first process that failed left behind; Stopped when a signal ended them.
    """
    if config.use_gpus and (there := torch.cuda.device_count()) < config.per_node:
        raise UserError(
            f"--gpus {config.per_node}: this machine has {there or 'no'} GPU{'s' * (there != 1)} that torch can use",
            hint=f"--gpus {there}"
            if there
            else f"--processes {config.per_node} trains on the processors (slowly)",
            code=MACHINE,
        )
    _silence()
    with (
        tempfile.TemporaryDirectory(prefix="switchkd-") as scratch,
        _environment(config, scratch),
        _handlers(),
    ):
        try:
            with (
                nullcontext()
                if config.nodes == 1
                else meeting(f"machine {config.node_rank} of {config.nodes}", config.rdzv_endpoint, after=0)
            ):
                launch_agent(_config(config, Path(scratch)), sys.executable, list(command))
        except ChildFailedError as failed:
            raise _cause(failed, config, Path(scratch)) from None
        except SignalException as asked:
            for child in psutil.Process().children(
                recursive=True
            ):  # none is left, but for an impatient Ctrl-C
                child.kill()
            words = exit_status.read_reports(Path(scratch))
            raise Stopped(asked.sigval, next((w.text for w in words if w.signal), "")) from None


def _silence() -> None:
    """What the agent logs, we say; its loggers don't ask their parents."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _config(config: LaunchConfig, scratch: Path) -> AgentConfig:
    shown = 0 if config.node_rank == 0 else None
    redirects = {rank: Std.ALL for rank in range(config.per_node) if rank != shown}
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    if config.nodes > 1:
        meeting = {
            "rdzv_backend": "static",
            "rdzv_endpoint": config.rdzv_endpoint,
            "rdzv_configs": {"rank": config.node_rank, "timeout": MEETING},
        }
    # before torch 2.9 the agent can't be given the signals: it handles these, and SIGQUIT
    given = {"signals_to_handle": ",".join(number.name for number in SIGNALS)}
    return AgentConfig(
        min_nodes=config.nodes,
        max_nodes=config.nodes,
        nproc_per_node=config.per_node,
        run_id=uuid.uuid4().hex if config.nodes == 1 else "switchkd",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "output"), redirects=redirects),
        **{name: value for name, value in given.items() if name in LaunchConfig.__dataclass_fields__},
        **meeting,
    )


@contextmanager
def _environment(config: LaunchConfig, scratch: str) -> Iterator[None]:
    """What the processes find in their environment beside torch's own variables."""
    given = {
        exit_status.FOLDER: scratch,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": SAVING,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // config.per_node))),
    }
    if not config.use_gpus:
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


def _cause(failed: ChildFailedError, config: LaunchConfig, scratch: Path) -> BaseException:
    """Why the processes ended: the earliest thing that is no consequence of another's end."""
    words = exit_status.read_reports(scratch)
    killed = {r: f for r, f in failed.failures.items() if f.exitcode < 0 and -f.exitcode != signal.SIGTERM}
    if words and not words[0].follows and words[0].signal is None:
        return words[0].error(config.world_size)
    if killed:
        rank, failure = next(iter(killed.items()))
        return _killed(rank, failure, config, scratch)
    if words:
        return words[0].error(config.world_size)
    rank, failure = failed.get_first_failure()
    return _killed(rank, failure, config, scratch)


def _killed(rank: int, failure: ProcessFailure, config: LaunchConfig, scratch: Path) -> UserError:
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
        [f"process {rank} of {config.world_size}: {ended}; the others were ended", *told], hint, CRASH
    )
