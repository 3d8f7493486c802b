"""The processes that train one model together: which one this is, and how they come to know the same."""

from __future__ import annotations

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
from switchkd_cli.engine.training.stalls import Pulse
from switchkd_cli.errors import MACHINE, UserError

T = TypeVar("T")

PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others inside a step: the first may be writing a checkpoint meanwhile.

Not how long it takes to notice that one died: the launcher ends the others within seconds. One that is silent is named and
ends the others earlier, see `Pulse`.
"""
MEETING = 600  # seconds in which all processes must have started
GLANCE = 0.1  # seconds between two looks for what the first process decides


@dataclass(frozen=True)
class Processes:
    """This process as number `rank` of `count`, `local` of those on its machine.

    Whom a collective call waits for in vain, `pulse` finds out.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    store: dist.Store | None = field(default=None, repr=False)
    pulse: Pulse | None = field(default=None, repr=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, logs and scores."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes: a GPU of its own where there are any."""
        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, of numbers of one shape in each."""
        if self.count > 1:
            self._reach()
            dist.all_reduce(numbers)
        return numbers

    def every(self, value: T) -> list[T]:
        """What each process has, in order. For small plain data; every process has to ask."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        self._reach()
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Around what needs the others: one that is silent meanwhile is missed."""
        if self.pulse is not None:
            self.pulse.needed += 1
        try:
            yield
        finally:
            if self.pulse is not None:
                self.pulse.needed -= 1

    def _reach(self) -> None:
        if self.pulse is not None:
            self.pulse.reached += 1

    def decide(self, what: Callable[[], T]) -> T:
        """What the first process finds out (plain data); the others wait for it, however long it takes.

        They look at the store now and then. A collective would be given up after PATIENCE, and would keep a signal
        from being handled.
        """
        if self.count == 1:
            return what()
        key = f"switchkd/{next(self._numbers)}"
        if self.first:
            value = what()
            self.store.set(key, json.dumps(value))
            return value
        with self.needed():
            while not self.store.check([key]):
                time.sleep(GLANCE)
            return json.loads(self.store.get(key))


ALONE = Processes()


def backend() -> str:
    """What tensors travel by."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@functools.cache
def joined() -> Processes:
    """This process among those that a launcher started with RANK, WORLD_SIZE, ... in the environment.

    Alone where there are no others. GPUs talk by NCCL, processors by gloo.
    """
    if not is_distributed():
        return ALONE
    store, rank, count = _met()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    dist.init_process_group(backend(), store=store, rank=rank, world_size=count, timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    return Processes(rank, count, local, dist.PrefixStore("decisions", store), Pulse(rank, count))


def _met() -> tuple[dist.Store, int, int]:
    """The processes' store, this one's rank, and their number. Raises UserError (code MACHINE) where they don't meet."""
    with meeting(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", os.environ["MASTER_ADDR"]):
        store, rank, count = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING)))
        store.set(f"met/{rank}", "")
        store.wait([f"met/{other}" for other in range(count)], timedelta(seconds=MEETING))
        store.set_timeout(PATIENCE)
    return store, rank, count


@contextmanager
def meeting(who: str, host: str, *, after: float = 15.0) -> Iterator[None]:
    """Around a call that waits for others to start: says so after so many seconds. Raises UserError where they don't."""
    text = f"{who}: waiting for the others to start, at most {MEETING / 60:g} minutes; a second Ctrl-C ends it at once"
    timer = threading.Timer(after, print, (text,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    except dist.DistError as error:
        why = str(error).partition("\n")[0]
        raise UserError(
            f"{who}: the others did not start, or can't be reached at {host}, within {MEETING / 60:g} minutes: {why}",
            hint="see that the same command runs on each machine, and that the first one's address and port are right",
            code=MACHINE,
        ) from error
    finally:
        timer.cancel()
