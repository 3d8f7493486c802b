"""Which of several processes the others wait for: a collective call does not say, and hears no signal meanwhile."""

from __future__ import annotations

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
TOLD, SILENT = (
    12,
    360,
)  # beats of ours without another's, after which that is told, and after which it is the end
KEY = "switchkd/pulse"


class Pulse:
    """Gives signs of life in the processes' store, with the number of exchanges `reached`, and looks for the others'.

    A process is missed when it gives none (it is stopped, or its machine is gone), or when we stand in an exchange that it
    does not come to (it waits for something else). Beats are counted, not seconds: none go by while a machine is suspended.
    The connection is its own, and so is the thread: the main one may be inside a call.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count, self.reached = rank, count, 0
        self.needed = 0  # blocks of our program in which the others are needed: in none, they may have ended
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=BEAT * SILENT)
        self._store = dist.TCPStore(*where, is_master=False, timeout=patience, wait_for_workers=False)
        self._late = dict.fromkeys((r for r in range(count) if r != rank), 0)  # beats that each is missed for
        self._seen: dict[int, list] = {}
        threading.Thread(target=self._run, daemon=True, name="pulse").start()

    def _run(self) -> None:
        beat, before = 0, -1
        while True:
            beat, reached = beat + 1, self.reached
            began = time.monotonic()
            try:
                mine = [beat, reached, f"process {os.getpid()} on {socket.gethostname()}"]
                self._store.set(f"{KEY}/{self.rank}", json.dumps(mine))
                for other in self._late:
                    self._look(other, waiting=reached == before)
            except RuntimeError:
                if time.monotonic() - began < BEAT:  # closed: the one who holds the store has ended
                    return
                self._end("the process that holds their store (the first, or its launcher) does not answer")
            before = reached
            time.sleep(BEAT)

    def _look(self, other: int, *, waiting: bool) -> None:
        key = f"{KEY}/{other}"
        now = json.loads(self._store.get(key)) if self._store.check([key]) else [0, 0, "not started"]
        was = self._seen.get(other, [-1, -1])
        self._seen[other] = now
        silent, behind = now[0] == was[0], waiting and now[1] == was[1] and now[1] < self.reached
        self._late[other] = self._late[other] + 1 if self.needed and (silent or behind) else 0
        if self._late[other] not in (TOLD, SILENT):
            return
        does = "has given no sign of life" if silent else "has not come to where the others wait for it"
        text = f"process {other} of {self.count} ({now[2]}) {does} for {self._late[other] * BEAT:.0f} seconds"
        if self._late[other] == TOLD:
            print(f"{text}: waiting for it", file=sys.stderr, flush=True)
        else:
            self._end(text)

    def _end(self, text: str) -> None:
        hint = "look at its machine; the same command goes on from the last checkpoint"
        exit_status.end_process(UserError(text, hint=hint, code=MACHINE))
