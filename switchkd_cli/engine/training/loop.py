"""The loop: one stage of training, from its first optimiser step (or where it was left) to its last."""

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from transformers import set_seed

from switchkd_cli.distributed import signals
from switchkd_cli.distributed.signals import Stopped
from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.checkpointing import Keeper
from switchkd_cli.engine.training.data_loader import Loader, loader_of, share_of, steps_of, taken, visits
from switchkd_cli.engine.training.oom import is_too_little, memory_mib, too_little
from switchkd_cli.engine.training.processes import ALONE, Processes
from switchkd_cli.engine.training.reduce import NotFinite
from switchkd_cli.engine.training.rng import random_state, set_random_state
from switchkd_cli.engine.training.trainer import TORCH_ALONE, Trainer
from switchkd_cli.engine.training.training_warnings import Watch, without
from switchkd_cli.engine.training.verify_chunks import GRADIENT, LOSS
from switchkd_cli.errors import CRASH, MACHINE, UserError
from switchkd_cli.recipe.schema import DeepSpeed, Stage

Log = Callable[[dict], None]
DIAGNOSED = 20  # times a stage that the diagnostics are taken
MOST_SKIPPED = 10  # steps in a row that may change no weight
SHOWN = 5  # rows named in a message; a file holds them all


class Loop:
    """A stage's training as it stands: `state_dict` is all that its next step depends on.

    Which rows come next follows from `step` and the seed, the weights that are not trained from the recipe and the
    stages before. Every random draw begins with the seed, so that a stage does not depend on what ran before it.
    """

    def __init__(
        self,
        stage: Stage,
        paths: Paths,
        data: Conversations,
        *,
        seed: int,
        precision: str,
        log: Log,
        trackers: Path,
        keeper: Keeper | None = None,
        processes: Processes = ALONE,
        deepspeed: DeepSpeed = TORCH_ALONE,
        check: bool = False,
        states: Path | None = None,
    ) -> None:
        set_seed(seed)
        self.check = check
        self.stage, self.data, self.log, self.keeper, self.processes = stage, data, log, keeper, processes
        self.steps = steps_of(stage, len(data))
        self.trainer = Trainer(
            stage,
            paths,
            self.steps,
            precision,
            trackers,
            seed,
            processes=processes,
            deepspeed=deepspeed,
            states=states,
        )
        self.watch = Watch(stage)
        self.visited = visits(stage, data, self.steps * stage.batch, seed)
        self.student = paths.student
        self.step = 0  # optimiser steps taken
        self.seconds = 0.0  # in which they were taken
        self.skipped = 0  # of them, the last ones in a row that changed no weight

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "random": random_state(),
            "watch": self.watch.state_dict(),
            **self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stands where `state_dict` was taken. Raises ValueError for the state of another training."""
        self.trainer.load_state_dict(state)
        self.watch.load_state_dict(state["watch"])
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        set_random_state(state["random"])

    def run(self) -> None:
        """Take the steps that are left. On a stop signal, save after the current step and raise Stopped.

        Raises UserError (code MACHINE) when memory runs out or a data worker dies; older checkpoints stay.
        """
        rank, together, micro = self.processes.rank, self.processes.count, self.trainer.micro
        count = self.stage.batch // (micro * together)
        left = share_of(self.visited[self.step * self.stage.batch :], micro, rank, together)
        loader = loader_of(self.stage, self.student, self.data, left, micro, self._tell_data)
        began = time.monotonic() - self.seconds
        with closing(loader), self.processes.needed():
            while self.step < self.steps:
                step_began = time.monotonic()
                group = self._next(loader, count)
                waited = time.monotonic() - step_began
                diagnosed = self.step % math.ceil(self.steps / DIAGNOSED) == 0 or self.step == self.steps - 1
                checked = self.check and self.step == 0
                try:
                    figures, broken = self.trainer.step(group, diagnosed=diagnosed, checked=checked)
                except (MemoryError, RuntimeError) as error:
                    if (died := loader.died(error)) is not None:
                        raise died from None
                    if not is_too_little(error):
                        raise
                    where = f"stage {self.stage.name}, step {self.step + 1}"
                    raise too_little(self.trainer, group, where, error) from error
                now = time.monotonic()
                figures |= self._pace(group, waited, now - step_began)
                self.seconds = now - began
                self._write(figures)
                if checked:
                    self._tell_check(figures)
                self.skipped = self.skipped + 1 if broken else 0
                if broken:
                    self._broke(broken, group)
                elif diagnosed:
                    self._look(figures)
                self.watch.count(self.trainer.compared)
                self.step += 1
                self._keep(figures, broken)
                if self.step == math.ceil(len(self.data) / self.stage.batch) and not broken:
                    self.check_idle()  # every row was used once: a part without gradient will not get one later

    def _next(self, loader: Loader, count: int) -> list[Batch]:
        """The step's micro-batches, of which each process has its own.

        Raises UserError when the data is gone, of whichever process, what was trained so far being saved; Stopped when
        one was asked to stop meanwhile.
        """
        group, met, error = [], [], None
        try:
            group = taken(loader, count)
            met = [row for batch in group for row in batch.unusable]
        except UserError as found:
            error = found
        for number, rows, found in self.processes.every(
            (signals.stop_signal() if not group else None, met, error)
        ):
            if number is not None:
                self._stop(number)
            try:
                self.data.ledger.add(rows)
                if found is not None:
                    raise found
            except UserError:
                self.save()
                raise
        return group

    def _pace(self, group: Sequence[Batch], waited: float, seconds: float) -> dict[str, float]:
        """How fast the step went and how much of it was padding, over all processes; the most memory that one takes."""
        mine = sum(batch.tokens for batch in group), sum(batch.places for batch in group)
        each = self.processes.every((*mine, waited, memory_mib()))
        tokens, places, waits, memory = zip(*each, strict=True)
        return {
            "tokens_per_second": sum(tokens) / seconds,
            "padding": 1 - sum(tokens) / sum(places),
            "data_wait": max(waits) / seconds,
            "memory_mib": max(memory),
        }

    def _keep(self, figures: dict[str, float], broken: list[NotFinite]) -> None:
        """Saves where it is due, and stops where that is asked: the first process looks at the clock for all."""
        if self.keeper is not None and not broken:
            self.keeper.score(figures)
        due = self.keeper is not None and self.keeper.due(self.step)
        told = self.processes.every((due, signals.stop_signal()))
        if told[0][0]:
            self.save()
        if asked := [number for _, number in told if number is not None]:
            self._stop(asked[0])

    def _stop(self, number: int) -> None:
        """Saves, and raises Stopped: a signal asked for it."""
        self.save()
        kept = "saved" if self.keeper is not None else "nothing is kept"
        where = f"stage {self.stage.name}, after step {self.step} of {self.steps}"
        raise Stopped(number, f"{signal.Signals(number).name}: {where}: {kept}")

    def save(self, *, scored: bool = True) -> None:
        """Writes a checkpoint of the steps taken so far. Every process has its part in it."""
        if self.keeper is not None and self.step:
            state = self.state_dict()
            if self.processes.first:
                self.keeper.save(self.step, state, scored=scored)

    def save_last(self) -> None:
        """A checkpoint of the last step, so that nothing is lost if the student then can't be saved.

        Where there is no room for it there may be for the student: that is logged. Raises UserError (code CRASH) for
        weights that are not finite.
        """
        try:
            self.save(scored=False)  # it may be of too few steps to be called the best
        except UserError as error:
            if error.code != MACHINE:
                raise
            self.log({"event": "warning", "stage": self.stage.name, "text": str(error)})

    def _write(self, figures: dict[str, float]) -> None:
        """The step's line."""
        self.trainer.write(figures, self.step)
        where = {"stage": self.stage.name, "step": self.step + 1, "steps": self.steps}
        self.log({**where, "seconds": self.seconds, **figures})

    def tell_states(self) -> None:
        """How many of the teacher's rows were found and how many computed, over all processes."""
        states = self.trainer.paths.states
        if states is None or states.file is None:
            return
        counts = self.processes.every((states.found, states.computed))
        found, computed = (sum(each) for each in zip(*counts, strict=True))
        mib = states.file.stat().st_size / 2**20
        where = {"event": "teacher states", "stage": self.stage.name}
        self.log({**where, "found": found, "computed": computed, "mib": mib})

    def _tell_data(self, text: str) -> None:
        """What slows this process's data down."""
        self.log({"event": "data", "stage": self.stage.name, "text": text})

    def check_idle(self) -> None:
        """Raises UserError where no gradient reached a part that is trained, or a term never had anything to compare."""
        where, terms = f"stage {self.stage.name}", self.watch.idle
        parts = [part for part in self.stage.train if not self.trainer.moved(part)]
        in_steps = f"in {self.step} steps"
        problems = [f"{where}: {part}: no gradient reached it {in_steps}: it is as it was" for part in parts]
        problems += [f"{where}: {term}: no row had what it compares {in_steps}" for term in terms]
        if problems:
            raise UserError(problems, hint=without(self.stage, parts, terms) + "; no model was saved")

    def tell_empty(self) -> None:
        """Steps in which no term had anything to compare, as a warning."""
        if self.watch.empty:
            told = f"in {self.watch.empty} of {self.steps} steps no term had anything to compare: no gradient was taken"
            self.log({"event": "warning", "stage": self.stage.name, "about": "empty steps", "text": told})

    def _tell_check(self, figures: dict[str, float]) -> None:
        """What came of comparing the chunks with all logits at once."""
        text = "the chunked objective is the dense one, but for"
        if LOSS not in figures:
            text = "nothing to compare: all logits are computed at once"
        found = {name.partition("/")[2]: figures[name] for name in (LOSS, GRADIENT) if name in figures}
        self.log({"event": "check", "stage": self.stage.name, "text": text, **found})

    def _look(self, figures: dict[str, float]) -> None:
        """What the diagnostics give away, as events."""
        for warning in self.watch.look(self.step, figures, last=self.step == self.steps - 1):
            self.log({"event": "warning", "stage": self.stage.name, **warning})

    def _broke(self, broken: list[NotFinite], group: Sequence[Batch]) -> None:
        """Writes down the step's rows and goes on, or raises UserError (exit code 1), as the stage says.

        The step changed no weight. When it ends the run, no checkpoint is written: those that are there are older.
        """
        at = {"stage": self.stage.name, "step": self.step + 1}
        told = [f"{b.figure} is {b.value}; rows {_listed(b.rows)}" for b in broken]
        ids = [ids for each in self.processes.every([list(b.ids) for b in group]) for ids in each]
        if self.keeper is not None and self.processes.first:
            figures = {b.figure: str(b.value) for b in broken}
            rows = list(dict.fromkeys(row for b in broken for row in b.rows))
            self.keeper.note({**at, "figures": figures, "rows": rows, "micro_batches": ids})
        if self.stage.not_finite == "skip" and self.skipped < MOST_SKIPPED:
            self.log({"event": "skipped step", **at, "text": "; ".join(told)})
            return
        where = f"stage {self.stage.name}, step {self.step + 1}"
        often = f" ({MOST_SKIPPED} such steps in a row)" if self.skipped >= MOST_SKIPPED > 1 else ""
        name = f"stages.{self.stage.name}"
        raise UserError(
            [f"{where}: {text}{often}" for text in told],
            hint=f"look at these rows, lower the learning rate ({name}.lr={self.stage.lr / 3:.1e}), or go past such "
            f"steps ({name}.not_finite=skip)",
            code=CRASH,
        )


def _listed(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(rows[:SHOWN]) + more


def train(
    stage: Stage,
    paths: Paths,
    data: Conversations,
    *,
    keeper: Keeper | None = None,
    **how: Any,
) -> None:
    """Trains the stage's parts of `paths.student` in place and logs a line of figures for every step.

    What the diagnosed steps give away (see `Watch`) is logged as an event "warning". With a `keeper`, checkpoints are
    written, and the newest is gone on from. `how` is as `Loop` takes it; each of several `processes` calls this with
    the same arguments.

    Raises UserError when too many rows can't be used, a part that is trained never had a gradient or a term nothing to
    compare, or (exit code 1) when a term or the gradient is no longer finite, naming them; Stopped when a signal asks
    for it.
    """
    loop = Loop(stage, paths, data, keeper=keeper, **how)
    if keeper is not None:
        keeper.give(loop.load_state_dict)
    loop.run()
    loop.check_idle()
    loop.tell_empty()
    loop.save_last()
    loop.tell_states()
    loop.trainer.close()
    paths.eval()
