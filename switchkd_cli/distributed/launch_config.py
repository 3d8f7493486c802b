"""Over how many processes and machines a training is spread, as options or another launcher say it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from switchkd_cli.errors import UserError

PORT = 29500  # where processes meet on the first machine when nobody says
PORTS = range(20000, 30000)  # among which a SLURM job has one of its own


@dataclass(frozen=True)
class Spread:
    """`each` processes on every one of `nodes` machines, with a GPU each or on processors. This one is `node`.

    They `meet` at an address (host:port) of the first machine. With a `hostfile`, DeepSpeed's launcher starts them.
    """

    each: int
    gpus: bool = True
    nodes: int = 1
    node: int = 0
    meet: str | None = None
    hostfile: Path | None = None

    @property
    def count(self) -> int:
        return self.each * self.nodes

    @property
    def options(self) -> list[str]:
        """The same on the command line of a process that starts them."""
        return ["--gpus" if self.gpus else "--processes", str(self.each)]


def spread(
    gpus: int | None,
    processes: int | None,
    nodes: int | None = None,
    node: int | None = None,
    meet: str | None = None,
    hostfile: Path | None = None,
    environment: MutableMapping[str, str] = os.environ,
) -> Spread | None:
    """What the options ask for; None where this process trains alone, or a launcher has started it with others.

    Under srun with one task a machine, what is not said of `nodes` is SLURM's. Raises UserError for options that don't
    go together.
    """
    adopt_slurm(environment, one_each=gpus is not None or processes is not None)
    if among_others(environment):
        return None
    if nodes is None and (tasks := _tasks(environment)) > 1:
        nodes, node, meet = tasks, int(environment["SLURM_PROCID"]), meet or _slurm_address(environment)
    problems = []
    if gpus is not None and processes is not None:
        problems.append("--gpus and --processes: one of them: GPUs, or processors without any")
    if (nodes or 1) > 1 and hostfile is None and (node is None or meet is None):
        problems.append(
            "--nodes: give the same command on each, with --node-rank 0, 1, ... and --meet HOST:PORT"
        )
    if meet is not None and not re.fullmatch(r"[^\s:]+:\d+", meet):
        problems.append(f"--meet: must be HOST:PORT, got {meet!r}")
    if node is not None and not 0 <= node < (nodes or 1):
        problems.append(f"--node-rank: must be 0 to {(nodes or 1) - 1}, got {node}")
    if hostfile is not None and not hostfile.is_file():
        problems.append(f"--hostfile: no such file, got {str(hostfile)!r}")
    if hostfile is not None and (gpus is None or processes is not None):
        problems.append("--hostfile: say how many GPUs of each host, as in --gpus 8")
    if gpus is None and processes is None and (nodes is not None or meet is not None):
        problems.append("--nodes: say how many GPUs of each, as in --gpus 8")
    if problems:
        raise UserError(problems, hint="see docs/scale.md")
    each = gpus or processes
    if each is None or (each * (nodes or 1) == 1 and hostfile is None):
        return None
    return Spread(each, gpus is not None, nodes or 1, node or 0, meet, hostfile)


def among_others(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of several."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def leads(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that writes, draws and scores."""
    return not among_others(environment) or environment.get("RANK", "0") == "0"


def adopt_slurm(environment: MutableMapping[str, str], *, one_each: bool) -> None:
    """Where srun started several tasks, say so in torch's variables.

    `one_each`: each task is a machine's only one and starts processes of its own: nothing is said.
    """
    tasks = _tasks(environment)
    if one_each or tasks < 2 or "WORLD_SIZE" in environment:
        return
    host, port = _slurm_address(environment).split(":")
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = str(tasks)
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = environment.get("SLURM_NTASKS_PER_NODE", "1")
    environment.setdefault("MASTER_ADDR", host)
    environment.setdefault("MASTER_PORT", port)


def leave(code: int) -> None:
    """Ends the process. One of several goes at once: what it could still wait for may never come."""
    if among_others():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _tasks(environment: MutableMapping[str, str]) -> int:
    """Tasks of the srun that started this process (a batch script's own variables are not it)."""
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))


def _slurm_address(environment: MutableMapping[str, str]) -> str:
    """Host and port on the first machine of the step; the port is the job's own."""
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    # node[003-005,009]-ib,login1 -> node003-ib
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?", listed)
    host = "".join(part or "" for part in found.groups()) if found else "localhost"
    job = int(environment.get("SLURM_JOB_ID", PORT))
    return f"{host}:{PORTS[job % len(PORTS)]}"
