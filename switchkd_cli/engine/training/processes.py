"""The processes that train one model together: the number of this one, how they exchange values, and which one is missing.

A collective call doesn't say which process it waits for, and blocks signal handlers meanwhile: `Heartbeat` does.
"""

import atexit
import functools
import itertools
import json
import os
import socket
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

from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.launch_config import is_distributed
from switchkd_cli.errors import MACHINE, UserError

T = TypeVar("T")

PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others inside a step: the first may be writing a checkpoint meanwhile.

A process that dies is noticed earlier: the launcher ends the others within seconds. So is one that is silent, see
`Heartbeat`.
"""
MEETING = 600  # seconds in which all processes must have started
POLL = 0.1  # seconds between two looks at what the first process decides
BEAT = 5.0  # seconds between two signs of life
WARN_AFTER, GIVE_UP_AFTER = 12, 360  # our beats without another process's, until a warning, and until the end
KEY = "switchkd/pulse"


class Heartbeat:
    """Writes signs of life and the number of exchanges into the processes' store, and reads the others'.

    A process is late when it gives no signs of life (it is stopped, or its machine is gone), or when this one waits in an
    exchange that it doesn't reach (it waits for something else). Beats are counted, not seconds, which also pass while a
    machine is suspended. It has its own connection and its own thread, as the main thread may be inside a call.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count, self.exchanges = rank, count, 0
        self.needed = 0  # depth of blocks that need the others: outside of them, the others may have ended
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=BEAT * GIVE_UP_AFTER)
        self._store = dist.TCPStore(*where, is_master=False, timeout=patience, wait_for_workers=False)
        self._late = dict.fromkeys((r for r in range(count) if r != rank), 0)  # beats that each is late
        self._last: dict[int, tuple[int, int]] = {}  # beat and exchanges of each
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def _run(self) -> None:
        beat, before = 0, -1
        while True:
            beat, exchanges = beat + 1, self.exchanges
            began = time.monotonic()
            try:
                mine = [beat, exchanges, f"process {os.getpid()} on {socket.gethostname()}"]
                self._store.set(f"{KEY}/{self.rank}", json.dumps(mine))
                for other in self._late:
                    self._check(other, waiting=exchanges == before)
            except RuntimeError:
                if time.monotonic() - began < BEAT:  # closed: the process that holds the store has ended
                    return
                self._end("the process that holds their store (the first, or its launcher) does not answer")
            before = exchanges
            time.sleep(BEAT)

    def _check(self, other: int, *, waiting: bool) -> None:
        key = f"{KEY}/{other}"
        state = json.loads(self._store.get(key)) if self._store.check([key]) else (0, 0, "not started")
        beat, exchanges, who = state
        last_beat, last_exchanges = self._last.get(other, (-1, -1))
        self._last[other] = beat, exchanges
        silent = beat == last_beat
        behind = waiting and exchanges == last_exchanges and exchanges < self.exchanges
        self._late[other] = self._late[other] + 1 if self.needed and (silent or behind) else 0
        if self._late[other] not in (WARN_AFTER, GIVE_UP_AFTER):
            return
        does = "has given no sign of life" if silent else "has not come to where the others wait for it"
        text = f"process {other} of {self.count} ({who}) {does} for {self._late[other] * BEAT:.0f} seconds"
        if self._late[other] == WARN_AFTER:
            print(f"{text}: waiting for it", file=sys.stderr, flush=True)
        else:
            self._end(text)

    def _end(self, text: str) -> None:
        hint = "look at its machine; the same command resumes from the last checkpoint"
        stopping.end_process(UserError(text, hint=hint, code=MACHINE))


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
