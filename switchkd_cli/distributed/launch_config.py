"""Multi-process launch settings, from command-line options, SLURM or another launcher such as torchrun.

Also the CPU cores that this process may use, and how OpenMP threads wait for one another on them.
"""

import os
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass, fields
from math import ceil
from pathlib import Path

from switchkd_cli.errors import UserError

PORT = 29500  # default port of the rendezvous address
PORTS = range(20000, 30000)  # each SLURM job takes one of them
CGROUP = Path("/sys/fs/cgroup")
SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""How long a thread spins before it sleeps, for OpenMP of GNU (iterations) and of Intel and LLVM (ms)."""


@dataclass(frozen=True)
class LaunchConfig:
    """`per_node` processes on each of `nodes` machines, on a GPU each or on the CPU; this machine is `node_rank`.

    They meet at `rdzv_endpoint` (host:port) on machine 0. With a `hostfile`, DeepSpeed's launcher starts them.
    """

    per_node: int
    use_gpus: bool = True
    nodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str | None = None
    hostfile: Path | None = None

    @property
    def world_size(self) -> int:
        return self.per_node * self.nodes


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """In how many processes a run trains, and where: options of the command line; None: not given."""

    gpus: int | None = None
    processes: int | None = None
    nodes: int | None = None
    node_rank: int | None = None
    rdzv_endpoint: str | None = None
    hostfile: Path | None = None

    def launch_config(self, environment: MutableMapping[str, str] = os.environ) -> LaunchConfig | None:
        """The processes to start; None when this process trains alone, or a launcher started it as one of several.

        Under srun with one task per machine, SLURM's values stand in for options that are absent. Raises UserError for
        options that contradict each other.
        """
        own = (getattr(self, option.name) for option in fields(LaunchOptions))
        gpus, processes, nodes, node_rank, rdzv_endpoint, hostfile = own
        per_node, tasks = gpus or processes, int(environment.get("SLURM_STEP_NUM_TASKS", "1"))  # srun's; 1 without srun
        if tasks > 1 and "WORLD_SIZE" not in environment:
            address = _slurm_address(environment)
            if per_node is None:  # srun is the launcher: a task is a process
                _adopt_slurm(environment, tasks, *address.split(":"))
            elif nodes is None:  # a task is a machine
                nodes, node_rank = tasks, int(environment["SLURM_PROCID"])
                rdzv_endpoint = rdzv_endpoint or address
        if is_distributed(environment):
            return None
        no_address = rdzv_endpoint is not None and not re.fullmatch(r"[^\s:]+:\d+", rdzv_endpoint)
        several = "--nodes: run the same command on each, with --node-rank 0, 1, ... and --rdzv-endpoint HOST:PORT"
        wrong = {
            "--gpus and --processes: give one of them: GPUs, or processes on the CPU": None not in (gpus, processes),
            several: (nodes or 1) > 1 and hostfile is None and None in (node_rank, rdzv_endpoint),
            f"--rdzv-endpoint: must be HOST:PORT, got {rdzv_endpoint!r}": no_address,
            f"--node-rank: must be 0 to {(nodes or 1) - 1}, got {node_rank}": (node_rank or 0) >= (nodes or 1),
            f"--hostfile: no such file, got {str(hostfile)!r}": hostfile is not None and not hostfile.is_file(),
            "--hostfile: say how many GPUs of each host, as in --gpus 8": hostfile is not None and gpus is None,
            "--nodes: say how many GPUs of each, as in --gpus 8": per_node is None and (nodes or rdzv_endpoint),
        }
        if problems := [text for text, found in wrong.items() if found]:
            raise UserError(problems, hint="see docs/scale.md")
        if per_node is None or (per_node * (nodes or 1) == 1 and hostfile is None):
            return None
        return LaunchConfig(per_node, gpus is not None, nodes or 1, node_rank or 0, rdzv_endpoint, hostfile)


def is_distributed(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of several."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def is_first(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that writes, draws and scores (rank 0, or alone)."""
    return not is_distributed(environment) or environment.get("RANK", "0") == "0"


def _adopt_slurm(environment: MutableMapping[str, str], tasks: int, host: str, port: str) -> None:
    """Set torch's variables (RANK, WORLD_SIZE, ...) when srun started several tasks."""
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = str(tasks)
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = environment.get("SLURM_NTASKS_PER_NODE", "1")
    environment.setdefault("MASTER_ADDR", host)
    environment.setdefault("MASTER_PORT", port)


def exit_process(code: int) -> None:
    """End the process. One of several ends at once: it could wait for another one that never comes."""
    if is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _slurm_address(environment: MutableMapping[str, str]) -> str:
    """Host and port on the first machine of the SLURM step; the port depends on the job."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    # node[003-005,009]-ib,login1 -> node003-ib
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?", nodes)
    host = "".join(part or "" for part in match.groups()) if match else "localhost"
    job = int(environment.get("SLURM_JOB_ID", PORT))
    return f"{host}:{PORTS[job % len(PORTS)]}"


def cores() -> int:
    """Number of CPU cores that the process may use: its affinity or all cores, and at most a container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _quota() or bound)


def set_thread_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OpenMP's variables for a machine that does other work, too, unless the user has set them.

    Has to be called before torch is imported. By default, threads spin for milliseconds while they wait for one
    another, and so take the cores that the awaited threads need, when other processes run; and there are as many
    threads as the machine has cores, whatever the container's quota.
    """
    if "OMP_WAIT_POLICY" not in environment:
        for name, value in SHORT_SPIN.items():
            environment.setdefault(name, value)
    if (quota := _quota()) is not None and quota == cores():
        environment.setdefault("OMP_NUM_THREADS", str(quota))


def _quota() -> int | None:
    """The container's CPU quota (cgroup version 2 or 1) in cores, rounded up; None without a quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = " ".join((CGROUP / name).read_text() for name in names).split()
            return None if quota in ("max", "-1") else max(1, ceil(int(quota) / int(period)))
    return None
