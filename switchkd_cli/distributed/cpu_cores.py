"""The processor cores that this process may use, and how threads wait for one another on them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress
from math import ceil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
SHORT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""How long a thread looks for work in a loop before it sleeps, for GNU's OpenMP (turns) and Intel's and LLVM's (ms)."""


def cores() -> int:
    """Their number: what the process is bound to where the system tells it, else all there are, or a container's share."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _quota() or bound)


def shared_politely(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets, before torch is imported, what its threads are to do beside other work, unless the user has said so.

    By default they wait for one another in a loop, milliseconds long: beside other processes, which hold the cores that
    the awaited ones need, nearly all time goes there. And they are as many as the machine's cores, not the container's.
    """
    if "OMP_WAIT_POLICY" not in environment:
        for name, value in SHORT.items():
            environment.setdefault(name, value)
    if (quota := _quota()) is not None and quota == cores():
        environment.setdefault("OMP_NUM_THREADS", str(quota))


def _quota() -> int | None:
    """The cores' worth of time that a container (cgroup, version 2 or 1) is given, rounded up; None where it is all."""
    with suppress(OSError, ValueError):
        given, period = (CGROUP / "cpu.max").read_text().split()
        return None if given == "max" else max(1, ceil(int(given) / int(period)))
    with suppress(OSError, ValueError):
        given, period = (
            int((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return None if given < 0 else max(1, ceil(given / period))
    return None
