"""Find the process that the others wait for: a collective call doesn't say, and blocks signal handlers meanwhile."""

import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from switchkd_cli.distributed import exit_status
from switchkd_cli.errors import MACHINE, UserError

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
        exit_status.end_process(UserError(text, hint=hint, code=MACHINE))
