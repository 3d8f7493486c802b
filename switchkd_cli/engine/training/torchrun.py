"""Start the processes of one training on this machine, with torch's elastic agent (the one behind torchrun).

The agent supervises them: when one fails, the others are ended at once; a signal is passed on, and they get time to save.
None is restarted: a run resumes from its checkpoint when it is started again by hand or by the scheduler.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig as AgentConfig
from torch.distributed.launcher.api import launch_agent

from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.launch_config import LaunchConfig, cores
from switchkd_cli.distributed.stopping import Stopped
from switchkd_cli.engine.training.processes import MEETING, meeting
from switchkd_cli.errors import CRASH, MACHINE, UserError

SAVING = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"}  # seconds that processes have to save after a stop signal
TAIL = 15  # lines of a process's output that are shown


def launch(command: Sequence[str], config: LaunchConfig) -> None:
    """Run `command` (of this Python) in every process of this machine; the first process prints where this one does.

    It is the last that this process does: its environment and its signals stay those of the others' agent. Raises the
    error of the first process that failed; Stopped when a signal ended them.
    """
    if config.use_gpus and (count := torch.cuda.device_count()) < config.per_node:
        has = f"this machine has {count or 'no'} GPU{'s' * (count != 1)} that torch can use"
        hint = f"--gpus {count}" if count else f"--processes {config.per_node} trains on the CPU (slowly)"
        raise UserError(f"--gpus {config.per_node}: {has}", hint=hint, code=MACHINE)
    for name in list(logging.root.manager.loggerDict):  # switchkd reports what the agent would log
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    who = f"machine {config.node_rank} of {config.nodes}"
    meet = nullcontext() if config.nodes == 1 else meeting(who, str(config.rdzv_endpoint), after=0)
    with tempfile.TemporaryDirectory(prefix="switchkd-") as scratch:
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // config.per_node)))
        on_cpu = {} if config.use_gpus else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        os.environ.update({stopping.REPORTS: scratch, "OMP_NUM_THREADS": threads, **SAVING, **on_cpu})
        try:
            with meet:
                launch_agent(_agent_config(config, Path(scratch)), sys.executable, list(command))
        except ChildFailedError as failed:
            raise _cause(failed, config, Path(scratch)) from None
        except SignalException as stop:
            for child in psutil.Process().children(recursive=True):  # there are some only after a second Ctrl-C
                child.kill()
            reports = stopping.read_reports(Path(scratch))
            texts = [report.error.text for report in reports if isinstance(report.error, Stopped)]
            raise Stopped(stop.sigval, *texts[:1]) from None
        finally:
            del os.environ[stopping.REPORTS]  # this process reports to nobody


def _agent_config(config: LaunchConfig, scratch: Path) -> AgentConfig:
    printing, alone = 0 if config.node_rank == 0 else None, config.nodes == 1
    redirects = {rank: Std.ALL for rank in range(config.per_node) if rank != printing}
    return AgentConfig(
        min_nodes=config.nodes,
        max_nodes=config.nodes,
        nproc_per_node=config.per_node,
        run_id=uuid.uuid4().hex if alone else "switchkd",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else str(config.rdzv_endpoint),
        rdzv_configs={} if alone else {"rank": config.node_rank, "timeout": MEETING},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "output"), redirects=redirects),
    )


def _cause(failed: ChildFailedError, config: LaunchConfig, scratch: Path) -> BaseException:
    """Return why the processes ended: the earliest failure that is not a consequence of another."""
    reports = stopping.read_reports(scratch)
    killed = {r: f for r, f in failed.failures.items() if f.exitcode < 0 and -f.exitcode != signal.SIGTERM}
    if reports and (not killed or not (reports[0].follows or isinstance(reports[0].error, Stopped))):
        return reports[0].error
    rank, failure = next(iter(killed.items()), None) or failed.get_first_failure()
    return _killed(rank, failure, config, scratch)


def _killed(rank: int, failure: ProcessFailure, config: LaunchConfig, scratch: Path) -> UserError:
    """Return the error of a process that could report nothing itself."""
    ended, hint = f"exit code {failure.exitcode}", ""
    if failure.exitcode < 0:
        ended = f"ended by signal {-failure.exitcode} ({signal.strsignal(-failure.exitcode)})"
    if -failure.exitcode == signal.SIGKILL:
        hint = "a killed process most likely ran out of memory: a smaller micro_batch needs less"
    output = [
        line
        for file in sorted(scratch.glob(f"output/*/attempt_0/{failure.local_rank}/stderr.log"))
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    ]
    return UserError([f"process {rank} of {config.world_size}: {ended}; the others were ended", *output], hint, CRASH)
