"""Which rows a stage visits, in which order, and how they become micro-batches."""

import math
import multiprocessing
import os
import pickle
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

import psutil
import torch
from torch.utils.data import DataLoader

from switchkd_cli.distributed import signals
from switchkd_cli.distributed.cpu_cores import cores
from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.data.conversation import Conversations, NoStandIn
from switchkd_cli.engine.data.sampling import grouped_order, order
from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.recipe.schema import Stage

MOST_WORKERS = 8  # processes that prepare data, where nobody says how many
GLANCE = 1  # seconds between two looks at them and at what we are asked, while no batch comes
TOLD, PATIENCE = 60, 1800  # looks without a batch after which that is told, and after which it is the end
SHM = Path("/dev/shm")


def steps_of(stage: Stage, rows: int) -> int:
    """Optimiser steps of a stage; a last, incomplete batch of the last epoch is filled from the next permutation."""
    return stage.steps or math.ceil(stage.epochs * rows / stage.batch)


def visits(stage: Stage, data: Conversations, wanted: int, seed: int) -> list[int]:
    """Which rows the stage visits, in order."""
    if stage.group_by == "modality_length":
        return grouped_order(data.sizes, data.pictured, stage.batch, wanted, seed)
    return order(len(data), wanted, seed)


class Loader:
    """Micro-batches, in order. The processes that prepare them, if any, are watched: none ends or falls silent unseen.

    Iterating ends early when a signal asks for it. `tell` is told, in words, when no data comes. Raises UserError (code
    MACHINE) where the processes can't be started, where one died, and where none gives a batch.
    """

    def __init__(self, batches: DataLoader, stage: str, tell: Callable[[str], None]) -> None:
        self.count, self.stage, self.tell, self._closed = batches.num_workers, stage, tell, False
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(1)
        try:
            if self.count:
                multiprocessing.Lock()  # where this fails, torch leaves traces of its own
            self._batches = iter(batches)
        except OSError as error:  # their semaphores lie in shared memory
            what = f"{self.count} processes that prepare data can't be started: {error}"
            raise self._fewer(f"stages.{stage}.workers: {what} ({_shared_memory()})") from error
        if self.count:
            self._thread = threading.Thread(target=self._fetch, daemon=True, name="data")
            self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self.count:
            return next(self._batches)
        for look in range(
            PATIENCE
        ):  # looks, not seconds: they don't go by while the whole program is suspended
            with suppress(queue.Empty):
                return self._got(GLANCE)
            if signals.stop_signal() is not None:
                raise StopIteration
            if look + 1 == TOLD:
                self.tell(f"none for {TOLD * GLANCE} seconds: {self._standing()}")
        raise self._fewer(f"stages.{self.stage}: no data for {PATIENCE * GLANCE} seconds: {self._standing()}")

    def died(self, error: BaseException) -> UserError | None:
        """What to say of an error that torch raises, wherever we stand, when a process that prepares data died."""
        if (found := re.match(r"DataLoader worker \(pid\S* ([\d, ]+)\) ([^.]*)", str(error))) is None:
            return None
        why = f"; {_shared_memory()}" if "Bus error" in found[2] else ""
        why = "; most likely for want of memory" if "Killed" in found[2] else why
        ended = found[2].replace("is killed", "was killed")
        return self._fewer(f"stages.{self.stage}: process {found[1]}, which prepared data, {ended}{why}")

    def close(self) -> None:
        """Ends the processes, those too that don't listen."""
        if self.count:
            self._closed = True
            with suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(GLANCE)
            self._batches._shutdown_workers()  # torch's own, which waits for each of them for seconds only
            for process in self._batches._workers:
                process.kill()

    def _fetch(self) -> None:
        """Gets what the processes give. In a thread: reading from one that stopped half-way never ends."""
        try:
            for batch in self._batches:
                self._ready.put(pickle.loads(batch))
                if self._closed:
                    return
            self._ready.put(StopIteration())
        except Exception as error:  # noqa: BLE001 (raised where the batch is waited for)
            self._ready.put(error)

    def _got(self, seconds: float) -> Batch:
        try:
            got = self._ready.get(timeout=seconds)
            if isinstance(got, Exception):
                raise got
            return got
        except RuntimeError as error:
            if (died := self.died(error)) is None:
                raise
            if signals.stop_signal() is not None:  # the signal that asked us has ended it, too
                raise StopIteration from None
            raise died from None

    def _standing(self) -> str:
        """The processes and what the system says of each, such as "stopped" or "disk-sleep"."""
        states = {process.pid: process.status() for process in psutil.Process().children()}
        return ", ".join(f"process {p.pid} {states.get(p.pid, 'ended')}" for p in self._batches._workers)

    def _fewer(self, what: str) -> UserError:
        hint = f"stages.{self.stage}.workers=0 prepares data in the training's own process, fewer need less memory"
        return UserError(what, hint=hint, code=MACHINE)


def _shared_memory() -> str:
    if not SHM.is_dir():
        return f"there is no {SHM}"
    size, _, free = (n / 2**20 for n in shutil.disk_usage(SHM))
    return f"{SHM}: {free:,.0f} of {size:,.0f} MiB free; docker run --shm-size=2g gives a container more"


def _piped(collated: Callable[[list], Batch], examples: list) -> bytes:
    """A batch as bytes for a pipe.

    torch puts tensors into shared memory, of which a container has 64 MiB; and it does so in a thread where a failure
    loses the batch, which is then waited for for ever.
    """
    return pickle.dumps(collated(examples), pickle.HIGHEST_PROTOCOL)


def loader_of(
    stage: Stage,
    student: Llava,
    data: Conversations,
    visited: Sequence[int],
    micro: int,
    tell: Callable[[str], None] = lambda text: None,
) -> Loader:
    """Micro-batches of the visited rows, in order, however many processes prepare them.

    Its generator is its own: to begin again in the middle draws nothing from the global one.
    """
    together = partial(
        collate,
        image_token=student.model.config.image_token_id,
        pad_token=student.processor.tokenizer.pad_token_id,
    )
    workers = workers_of(stage, data)
    batches = DataLoader(
        data,
        batch_size=micro,
        sampler=visited,
        collate_fn=partial(_piped, together) if workers else together,
        num_workers=workers,
        generator=torch.Generator(),
    )
    return Loader(batches, stage.name, tell)


def micro_batch(stage: Stage, processes: int) -> int:
    """Rows that a process holds at once: the recipe's `micro_batch`, or the largest that divides its share of the batch.

    Raises UserError where the batch can't be shared out evenly.
    """
    each, left = divmod(stage.batch, processes)
    if left:
        fits = max(n for n in range(1, processes) if stage.batch % n == 0)
        raise UserError(
            f"stages.{stage.name}.batch: must be a multiple of the {processes} processes, got {stage.batch}",
            hint=f"train in {fits} of them, or change stages.{stage.name}.batch",
        )
    wanted = min(stage.micro_batch or each, each)
    return max(n for n in range(1, wanted + 1) if each % n == 0)


def share_of(visited: Sequence[int], micro: int, rank: int, processes: int) -> list[int]:
    """The rows of one of several processes: the micro-batches of one are dealt out, a step's to all in turn."""
    firsts = range(rank * micro, len(visited), processes * micro)
    return [row for first in firsts for row in visited[first : first + micro]]


def workers_of(stage: Stage, data: Conversations) -> int:
    """Processes that prepare data: what the stage says; else none for a set that stays in memory."""
    if stage.workers is not None:
        return stage.workers
    if data.fits:
        return 0
    mine = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, mine - 1))


def taken(loader: Iterator[Batch], count: int) -> list[Batch]:
    """The next micro-batches; none when one is asked to stop meanwhile. Raises UserError when the data is gone."""
    try:
        group = list(islice(loader, count))
        return group if len(group) == count else []
    except NoStandIn as error:  # from a worker it comes with its traceback in the text
        told = str(error).strip().splitlines()[-1].removeprefix(f"{NoStandIn.__module__}.NoStandIn: ")
        raise UserError(told, hint="check that the pictures are still there") from None
