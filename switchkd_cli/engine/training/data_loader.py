"""Micro-batches of a stage: which examples it visits, in which order, and the data workers that prepare them."""

import math
import multiprocessing
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from fractions import Fraction
from functools import partial
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader

from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.launch_config import cores
from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.data.conversation import Examples, Mixture, NoStandIn, Variants
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.recipe.schema import Stage

MAX_WORKERS = 8  # data workers, unless the stage says how many
POLL = 1  # seconds between two looks at the workers and at stop signals, while no batch comes
WARN_AFTER, GIVE_UP_AFTER = 60, 1800  # looks without a batch until a warning, and until the end
SHM = Path("/dev/shm")


def count_steps(stage: Stage, rows: int) -> int:
    """Return a stage's optimiser steps; an incomplete batch of the last epoch is filled from the next permutation.

    Raises UserError for a mixer with more rounds than steps.
    """
    epochs = Fraction(str(stage.epochs or 0))  # as it is written: a float may be a little more
    steps = stage.steps or math.ceil(epochs * rows / stage.batch)
    if stage.mixer is not None and stage.mixer.rounds > steps:
        problem = f"stages.{stage.name}.mixer.rounds: a round takes a step or more, and the stage has {steps:,}"
        raise UserError(f"{problem}: got {stage.mixer.rounds}", hint=f"stages.{stage.name}.mixer.rounds={steps}")
    return steps


def visit_order(stage: Stage, data: Examples, count: int, seed: int) -> list[int]:
    """Return the indices of the examples that the stage visits, in order."""
    plain = None
    if isinstance(data, Mixture):
        # grouped rows may wait for the next epoch, a step at most
        epochs = math.ceil((count + stage.batch) / len(data))
        plain = mixed_order([len(part) for part in data.parts], data.shares, epochs * len(data), seed)
    if stage.group_by == "modality_length":
        return grouped_order(*lengths_and_images(data), stage.batch, count, seed, plain)
    return order(len(data), count, seed) if plain is None else plain[:count]


def lengths_and_images(data: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Return the length of each row's text, and whether it has an image."""
    surveys = [(part.rows.survey, part.chosen) for part in data.parts]
    sizes, masks = zip(*((survey.sizes[rows], survey.image_mask[rows]) for survey, rows in surveys), strict=True)
    return np.concatenate(sizes), np.concatenate(masks)


class Loader:
    """Micro-batches, in order. If workers prepare them, one that dies or hangs is noticed and reported.

    Iteration ends early on a stop signal. `warn` is called with a text when no data comes. Raises UserError (code
    MACHINE) if the workers can't be started, one died, or none gives a batch.
    """

    def __init__(self, batches: DataLoader, stage: str, warn: Callable[[str], None]) -> None:
        self.count, self.stage, self.warn = batches.num_workers, stage, warn
        try:
            if self.count:
                multiprocessing.Lock()  # fails first, where torch's failure would leave its own messages
            self._batches: Any = iter(batches)  # with workers: torch's iterator, whose private parts are used
        except OSError as error:  # their semaphores are in shared memory
            what = f"{self.count} data workers can't be started: {error}"
            raise self._workers_error(f"stages.{stage}.workers: {what} ({_shared_memory()})") from error
        if self.count:
            self._fetch()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self.count:
            return next(self._batches)
        # looks are counted, not seconds, which also pass while the whole program is suspended
        for look in range(GIVE_UP_AFTER):
            try:
                batch = self._next.result(timeout=POLL)
                self._fetch()
                return batch
            except TimeoutError:
                pass
            except RuntimeError as error:
                if (died := self.died(error)) is None:
                    raise
                if stopping.stop_signal() is None:  # otherwise the stop signal has ended the worker, too
                    raise died from None
            if stopping.stop_signal() is not None:
                raise StopIteration
            if look + 1 == WARN_AFTER:
                self.warn(f"none for {WARN_AFTER * POLL} seconds: {self._worker_states()}")
        where = f"stages.{self.stage}"
        raise self._workers_error(f"{where}: no data for {GIVE_UP_AFTER * POLL} seconds: {self._worker_states()}")

    def died(self, error: BaseException) -> UserError | None:
        """Return what to raise for an error of torch's, wherever it was raised, that says that a worker died."""
        if (match := re.match(r"DataLoader worker \(pid\S* ([\d, ]+)\) ([^.]*)", str(error))) is None:
            return None
        why = f"; {_shared_memory()}" if "Bus error" in match[2] else ""
        why = "; most likely it ran out of memory" if "Killed" in match[2] else why
        ended = match[2].replace("is killed", "was killed")
        return self._workers_error(f"stages.{self.stage}: data worker {match[1]} {ended}{why}")

    def close(self) -> None:
        """End the workers, also those that don't react."""
        if self.count:
            self._thread.join(POLL)
            self._batches._shutdown_workers()  # torch's own, which waits only seconds for each
            for process in self._batches._workers:
                process.kill()

    def _fetch(self) -> None:
        """Receive the next batch from the workers, in a thread: reading from a worker that stopped half-way never ends."""
        self._next = coming = Future[Batch]()

        def receive() -> None:
            try:
                coming.set_result(pickle.loads(next(self._batches)))
            except Exception as error:  # noqa: BLE001 (raised where the batch is waited for)
                coming.set_exception(error)

        self._thread = threading.Thread(target=receive, daemon=True, name="data")
        self._thread.start()

    def _worker_states(self) -> str:
        """Return the workers and the system's state of each, such as "stopped" or "disk-sleep"."""
        states = {process.pid: process.status() for process in psutil.Process().children()}
        return ", ".join(f"process {p.pid} {states.get(p.pid, 'ended')}" for p in self._batches._workers)

    def _workers_error(self, what: str) -> UserError:
        alone = f"stages.{self.stage}.workers=0 prepares data in the training's own process"
        return UserError(what, hint=f"{alone}; fewer workers need less memory", code=MACHINE)


def _shared_memory() -> str:
    if not SHM.is_dir():
        return f"there is no {SHM}"
    size, _, free = (n / 2**20 for n in shutil.disk_usage(SHM))
    return f"{SHM}: {free:,.0f} of {size:,.0f} MiB free; docker run --shm-size=2g gives a container more"


def _pickled(collate_batch: Callable[[list], Batch], examples: list) -> bytes:
    """Return a batch as bytes for a pipe.

    torch puts tensors into shared memory, of which a container has 64 MiB. It does so in a thread where a failure loses the
    batch, for which the training would then wait forever.
    """
    return pickle.dumps(collate_batch(examples), pickle.HIGHEST_PROTOCOL)


def make_loader(
    stage: Stage,
    student: VisionLanguageModel,
    data: Examples | Variants,
    visited: Sequence[int],
    micro_batch: int,
    warn: Callable[[str], None] = lambda text: None,
) -> Loader:
    """Return a loader of micro-batches of the visited rows, in order, whatever the number of workers.

    It has its own random generator, so that resuming in the middle draws nothing from the global one.
    """
    collate_batch = partial(collate, pad_token=student.inputs.tokenizer.pad_token_id)
    workers = count_workers(stage, data)
    batches = DataLoader(
        data,
        batch_size=micro_batch,
        sampler=visited,
        collate_fn=partial(_pickled, collate_batch) if workers else collate_batch,
        num_workers=workers,
        generator=torch.Generator(),
    )
    return Loader(batches, stage.name, warn)


def rows_of_process(visited: Sequence[int], micro_batch: int, rank: int, processes: int) -> list[int]:
    """Return the rows of one process: the micro-batches of a step go to the processes in turn."""
    firsts = range(rank * micro_batch, len(visited), processes * micro_batch)
    return [row for first in firsts for row in visited[first : first + micro_batch]]


def count_workers(stage: Stage, data: Examples | Variants) -> int:
    """Return the number of data workers: what the stage says; otherwise none for a data set that fits in memory."""
    if stage.workers is not None:
        return stage.workers
    if all(part.fits_in_memory for part in data.parts):
        return 0
    mine = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, mine - 1))


def next_micro_batches(loader: Iterator[Batch], count: int) -> list[Batch]:
    """Return the next micro-batches; none on a stop signal meanwhile. Raises UserError when the data is gone."""
    try:
        group = list(islice(loader, count))
        return group if len(group) == count else []
    except NoStandIn as error:  # from a worker it comes with its traceback in the text
        text = str(error).strip().splitlines()[-1].removeprefix(f"{NoStandIn.__module__}.NoStandIn: ")
        raise UserError(text, hint="check that the images are still there") from None


def order(rows: int, count: int, seed: int) -> list[int]:
    """Return the first `count` row numbers to visit: a new permutation for each epoch, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(rows, generator=generator) for _ in range(math.ceil(count / rows))]
    return torch.cat(epochs)[:count].tolist()


def mixed_order(
    rows: Sequence[int], shares: Sequence[float], count: int, seed: int, before: Sequence[Sequence[float]] = ()
) -> list[int]:
    """Return the next `count` examples of a mixture, numbered one data set after another; the first without `before`.

    Each set is visited in the `order` of a seed of its own. The sets take turns as evenly as their shares allow: the j-th
    example of a set with share s is due at (j + 1/2) / s, so no stretch of the training has more or less of a set than its
    share, by about one example. `before`: of each set its examples so far, and how many more than its share.
    """
    taken, ahead = zip(*before or [(0, 0.0)] * len(rows), strict=True)
    wanted = [math.ceil(count * share - min(0, more)) + 1 for share, more in zip(shares, ahead, strict=True)]
    each = zip(wanted, shares, ahead, strict=True)
    due = np.concatenate([(np.arange(n) + 0.5 + more) / share for n, share, more in each])
    of = np.repeat(np.arange(len(rows)), wanted)[np.argsort(due, kind="stable")[:count]]
    visited, first = np.zeros(count, np.int64), 0
    for number, size in enumerate(rows):
        mine = of == number
        if mine.any():
            own = order(size, taken[number] + int(mine.sum()), seed + (number << 32))
            visited[mine] = first + np.array(own[taken[number] :])
        first += size
    return visited.tolist()


def grouped_order(
    sizes: np.ndarray, image_mask: np.ndarray, batch: int, count: int, seed: int, plain: Sequence[int] | None = None
) -> list[int]:
    """Like `order`, but the `batch` rows of a step either all have an image or are all text, the longest first.

    Within each kind, rows are assigned to steps at random (as in LLaVA's `group_by_modality_length`); only micro-batches
    hold rows of similar length. Left-over rows of both kinds, too few for a step, are mixed. Every epoch visits every
    row once, or what it has in a `plain` order of whole epochs, which needs a step more than `count`.
    """
    generator = torch.Generator().manual_seed(seed)
    visited: list[int] = []
    left: list[int] = []  # rows too few for a step; the next epoch begins with them
    permutations = (torch.randperm(len(sizes), generator=generator) for _ in count_from())
    epochs: Iterator[torch.Tensor] = permutations if plain is None else iter(torch.tensor(plain).split(len(sizes)))
    while len(visited) < count:
        rows = torch.tensor([*left, *next(epochs).tolist()])
        first, rows = rows[: batch if left else 0], rows[batch if left else 0 :]
        row_has_image = torch.from_numpy(image_mask)[rows]
        kinds = [rows[row_has_image], rows[~row_has_image]]
        full = [step for kind in kinds for step in kind.split(batch) if len(step) == batch]
        mixed = torch.cat([kind[len(kind) // batch * batch :] for kind in kinds])
        mixed = mixed[torch.randperm(len(mixed), generator=generator)]
        steps = [full[i] for i in torch.randperm(len(full), generator=generator)]
        steps = [s for s in (first, *steps, *mixed.split(batch)) if len(s)]
        left = steps.pop().tolist() if len(steps[-1]) < batch else []
        for step in steps:
            longest_first = np.argsort(-sizes[step], kind="stable")
            visited += step[longest_first].tolist()
    return visited[:count]
