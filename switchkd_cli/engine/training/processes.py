"""The processes that train one model together: the number of this one, and how they exchange values."""

import atexit
import functools
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from switchkd_cli.distributed.launch_config import is_distributed
from switchkd_cli.engine.training.stalls import Heartbeat
from switchkd_cli.errors import MACHINE, UserError

T = TypeVar("T")

PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others inside a step: the first may be writing a checkpoint meanwhile.

A process that dies is noticed earlier: the launcher ends the others within seconds. So is one that is silent, see
`Heartbeat`.
"""
MEETING = 600  # seconds in which all processes must have started
POLL = 0.1  # seconds between two looks at what the first process decides


@dataclass(frozen=True)
class Processes:
    """This process as number `rank` of `count`, and number `local` on its machine.

    `heartbeat` finds the process for which a collective call waits in vain; there is none if this is the only process.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    store: dist.Store | None = field(default=None, repr=False)
    heartbeat: Heartbeat | None = field(default=None, repr=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and scores."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Return this process's device: a GPU of its own if there are any."""
        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    def sum(self, numbers: Tensor) -> Tensor:
        """Return the sum over all processes of tensors of the same shape. Every process must call this."""
        if self.heartbeat is not None:
            self.heartbeat.exchanges += 1
            dist.all_reduce(numbers)
        return numbers

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order. For small plain data; every process must call this."""
        if self.heartbeat is None:
            return [value]
        values: list[Any] = [None] * self.count
        self.heartbeat.exchanges += 1
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Around code that needs the other processes: one that is silent meanwhile is reported."""
        if self.heartbeat is not None:
            self.heartbeat.needed += 1
        try:
            yield
        finally:
            if self.heartbeat is not None:
                self.heartbeat.needed -= 1

    def decide(self, what: Callable[[], T]) -> T:
        """Return what the first process computes (plain data); the others wait for it, however long it takes.

        They poll the store. A collective call would give up after PATIENCE, and would block signal handlers.
        """
        if self.store is None:
            return what()
        key = f"switchkd/{next(self._numbers)}"
        if self.first:
            value = what()
            self.store.set(key, json.dumps(value))
            return value
        with self.needed():
            while not self.store.check([key]):
                time.sleep(POLL)
            return json.loads(self.store.get(key))


ALONE = Processes()


def backend() -> str:
    """Return the name of torch.distributed's backend: NCCL between GPUs, gloo between CPUs."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@functools.cache
def join_processes() -> Processes:
    """Join the processes that a launcher started with RANK, WORLD_SIZE, ... in the environment.

    Returns ALONE if there are no others. Raises UserError (code MACHINE) if some don't start.
    """
    if not is_distributed():
        return ALONE
    patience = timedelta(seconds=MEETING)
    with meeting(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", os.environ["MASTER_ADDR"]):
        store, rank, count = next(dist.rendezvous("env://", timeout=patience))
        store.set(f"met/{rank}", "")
        store.wait([f"met/{other}" for other in range(count)], patience)
        store.set_timeout(PATIENCE)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    dist.init_process_group(backend(), store=store, rank=rank, world_size=count, timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    return Processes(rank, count, local, dist.PrefixStore("decisions", store), Heartbeat(rank, count))


@contextmanager
def meeting(who: str, host: str, *, after: float = 15.0) -> Iterator[None]:
    """Around a call that waits for others to start: says so `after` seconds. Raises UserError if they don't start."""
    text = f"{who}: waiting for the others to start, at most {MEETING / 60:g} minutes; a second Ctrl-C ends it at once"
    timer = threading.Timer(after, print, (text,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    except dist.DistError as error:
        what = f"the others did not start, or can't be reached at {host}, within {MEETING / 60:g} minutes"
        hint = "check that the same command runs on each machine, and that the first one's address and port are right"
        why = str(error).partition("\n")[0]
        raise UserError(f"{who}: {what}: {why}", hint, MACHINE) from error
    finally:
        timer.cancel()
