"""The CPU cores that this process may use, and how OpenMP threads wait for one another on them."""

import os
from collections.abc import MutableMapping
from contextlib import suppress
from math import ceil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""How long a thread spins before it sleeps, for OpenMP of GNU (iterations) and of Intel and LLVM (ms)."""


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
