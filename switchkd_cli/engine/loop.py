"""The loop: one stage of training, from its first optimiser step (or where it was left) to its last."""

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from switchkd_cli.engine.chance import random_state, set_random_state
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.loader import loader_of, steps_of, taken, visits
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.trainer import NotFinite, Trainer
from switchkd_cli.engine.watch import Watch
from switchkd_cli.errors import CRASH, UserError
from switchkd_cli.recipe.schema import Stage

Log = Callable[[dict], None]
DIAGNOSED = 20  # times a stage that the diagnostics are taken


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
    ) -> None:
        set_seed(seed)
        self.stage, self.data, self.log = stage, data, log
        self.steps = steps_of(stage, len(data))
        self.trainer = Trainer(stage, paths, self.steps, precision, trackers, seed)
        self.watch = Watch(stage)
        self.visited = visits(stage, data, self.steps * stage.batch, seed)
        self.student = paths.student
        self.step = 0  # optimiser steps taken
        self.seconds = 0.0  # in which they were taken

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "random": random_state(),
            "watch": self.watch.state_dict(),
            **self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stands where `state_dict` was taken. Raises ValueError for the state of another training."""
        self.trainer.load_state_dict(state)
        self.watch.load_state_dict(state["watch"])
        self.step, self.seconds = state["step"], state["seconds"]
        set_random_state(state["random"])

    def run(self) -> None:
        """Takes the steps that are left."""
        micro = self.trainer.micro
        loader = iter(
            loader_of(
                self.stage, self.student, self.data, self.visited[self.step * self.stage.batch :], micro
            )
        )
        began = time.monotonic() - self.seconds
        while self.step < self.steps:
            step_began = time.monotonic()
            group = taken(loader, self.stage.batch // micro)
            self.data.ledger.add(row for batch in group for row in batch.unusable)
            waited = time.monotonic() - step_began
            diagnosed = self.step % math.ceil(self.steps / DIAGNOSED) == 0 or self.step == self.steps - 1
            figures, broken = self.trainer.step(group, diagnosed=diagnosed)
            now = time.monotonic()
            figures |= {
                "tokens_per_second": sum(batch.tokens for batch in group) / (now - step_began),
                "data_wait": waited / (now - step_began),
                "memory_mib": memory_mib(),
            }
            self.seconds = now - began
            self._write(figures)
            if broken:
                self._stop(broken)
            if diagnosed:
                self._look(figures)
            self.step += 1

    def _write(self, figures: dict[str, float]) -> None:
        """The step's line."""
        self.trainer.accelerator.log(figures, step=self.step)
        where = {"stage": self.stage.name, "step": self.step + 1, "steps": self.steps}
        self.log({**where, "seconds": self.seconds, **figures})

    def _look(self, figures: dict[str, float]) -> None:
        """What the diagnostics give away, as events."""
        for warning in self.watch.look(self.step, figures, last=self.step == self.steps - 1):
            self.log({"event": "warning", "stage": self.stage.name, **warning})

    def _stop(self, broken: list[NotFinite]) -> None:
        """Raises UserError (exit code 1) that names the figures and rows."""
        where = f"stage {self.stage.name}, step {self.step + 1}"
        raise UserError(
            [f"{where}: {b.figure} is {b.value}; rows {', '.join(b.rows)}" for b in broken],
            hint=f"lower the learning rate: stages.{self.stage.name}.lr={self.stage.lr / 3:.1e}",
            code=CRASH,
        )


def train(
    stage: Stage, paths: Paths, data: Conversations, *, seed: int, precision: str, log: Log, trackers: Path
) -> None:
    """Trains the stage's parts of `paths.student` in place and logs a line of figures for every step.

    What the diagnosed steps give away (see `Watch`) is logged as an event "warning".

    Raises UserError when too many rows can't be used, or (exit code 1) when a term or the gradient is no longer
    finite, naming them.
    """
    loop = Loop(stage, paths, data, seed=seed, precision=precision, log=log, trackers=trackers)
    loop.run()
    loop.trainer.close()
    paths.eval()


def memory_mib() -> float:
    """Peak memory of the accelerator, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
