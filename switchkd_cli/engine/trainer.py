"""The loop: one stage of training, from its first optimiser step to its last."""

import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import get_scheduler

from switchkd_cli.cores import cores
from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.data.conversation import Conversations, NoStandIn
from switchkd_cli.engine.data.order import grouped_order, order
from switchkd_cli.engine.diagnostics import diagnose, pulls
from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.engine.objective import Objective
from switchkd_cli.engine.paths import PATHS, Paths
from switchkd_cli.engine.watch import Watch
from switchkd_cli.errors import CRASH, UserError
from switchkd_cli.recipe.schema import Stage

Log = Callable[[dict], None]
DIAGNOSED = 20  # times a stage that the diagnostics are taken
MOST_WORKERS = 8  # processes that prepare data, where nobody says how many
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}  # ours -> transformers' names


class Trainer:
    """What one stage needs to take optimiser steps.

    Accelerate holds the device, the precision and the accumulation. A step's loss is divided by the supervised
    positions of *all* its rows, so no split into micro-batches changes the gradient.
    """

    def __init__(
        self, stage: Stage, paths: Paths, steps: int, precision: str, trackers: Path, seed: int = 0
    ) -> None:
        self.stage, self.steps = stage, steps
        self.micro = stage.micro_batch or stage.batch
        self.accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            gradient_accumulation_steps=stage.batch // self.micro,
            log_with="tensorboard",
            project_dir=trackers,
        )
        self.accelerator.init_trackers(stage.name)
        self.objective = Objective(stage.objective)
        paths.student.requires_grad_(False)
        self.parts = {part: unfreeze(paths.student, part) for part in stage.train}
        groups = [
            {"params": given, "lr": stage.lr * stage.lr_scale.get(part, 1.0)}
            for part, given in self.parts.items()
        ]
        if adapters := paths.adapt(self.objective.readings, seed):
            groups.append({"params": adapters, "lr": stage.lr})
        self.trained = [p for group in groups for p in group["params"]]
        optimizer = AdamW(groups, weight_decay=stage.weight_decay)
        self.schedule = get_scheduler(
            SCHEDULES[stage.schedule], optimizer, round(stage.warmup * steps), steps
        )
        self.paths, self.optimizer = self.accelerator.prepare(paths.train(), optimizer)

    def step(self, group: Sequence[Batch], *, diagnosed: bool) -> dict[str, float]:
        """One optimiser step over the group's micro-batches; returns its figures."""
        group = [batch.to(self.accelerator.device) for batch in group]
        tally = self.objective.tally(group, progress=self.schedule.last_epoch / self.steps)
        figures = {"lr": self.schedule.get_last_lr()[0]}
        for batch in group:
            with self.accelerator.accumulate(self.paths):
                keep = self.objective.keep(batch)
                readings = self.paths(batch, self.objective.readings, keep)
                parts = self.objective(readings, batch, keep, tally)
                if diagnosed and batch is group[-1]:
                    figures |= pulls(parts, self.stage.objective, self.parts)
                # backward() averages over the micro-batches; the tally has divided by all of them already
                self.accelerator.backward(self.objective.total(parts) * len(group))
                for name, value in parts.items():
                    figures[f"loss/{name}"] = figures.get(f"loss/{name}", 0.0) + value.item()
                if self.accelerator.sync_gradients:
                    limit = self.stage.grad_clip or math.inf
                    figures["grad_norm"] = float(self.accelerator.clip_grad_norm_(self.trained, limit))
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.schedule.step()
        figures["loss"] = sum(term.weight * figures[f"loss/{term.name}"] for term in self.stage.objective)
        if diagnosed:
            logits = {path: readings[path] for path in PATHS if path in readings}
            figures |= diagnose(logits, batch, keep, self.stage.objective)
        return figures


def train(
    stage: Stage, paths: Paths, data: Conversations, *, seed: int, precision: str, log: Log, trackers: Path
) -> None:
    """Trains the stage's parts of `paths.student` in place and logs a line of figures for every step.

    What the diagnosed steps give away (see `Watch`) is logged as an event "warning".

    Raises UserError when too many rows can't be used, or (exit code 1) when the loss is no longer finite, naming
    the terms.
    """
    steps = steps_of(stage, len(data))
    trainer = Trainer(stage, paths, steps, precision, trackers, seed)
    visited = visits(stage, data, steps * stage.batch, seed)
    loader = iter(loader_of(stage, paths.student, data, visited, trainer.micro))
    watch = Watch(stage)
    began = time.monotonic()
    for step in range(steps):
        step_began = time.monotonic()
        group = _taken(loader, stage.batch // trainer.micro)
        data.ledger.add(row for batch in group for row in batch.unusable)
        waited = time.monotonic() - step_began
        diagnosed = step % math.ceil(steps / DIAGNOSED) == 0 or step == steps - 1
        figures = trainer.step(group, diagnosed=diagnosed)
        now = time.monotonic()
        figures |= {
            "tokens_per_second": sum(batch.tokens for batch in group) / (now - step_began),
            "data_wait": waited / (now - step_began),
            "memory_mib": memory_mib(),
        }
        trainer.accelerator.log(figures, step=step)
        log({"stage": stage.name, "step": step + 1, "steps": steps, "seconds": now - began, **figures})
        _check_finite(stage, step, figures)
        if diagnosed:
            for warning in watch.look(step, figures, last=step == steps - 1):
                log({"event": "warning", "stage": stage.name, **warning})
    trainer.accelerator.end_training()
    paths.eval()


def steps_of(stage: Stage, rows: int) -> int:
    """Optimiser steps of a stage; a last, incomplete batch of the last epoch is filled from the next permutation."""
    return stage.steps or math.ceil(stage.epochs * rows / stage.batch)


def unfreeze(student: Llava, part: str) -> list[torch.nn.Parameter]:
    """Lets the part be trained and returns the parameters that a forward pass of it reaches."""
    parameters = list(student.reached(part).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def visits(stage: Stage, data: Conversations, wanted: int, seed: int) -> list[int]:
    """Which rows the stage visits, in order."""
    if stage.group_by == "modality_length":
        return grouped_order(data.sizes, data.pictured, stage.batch, wanted, seed)
    return order(len(data), wanted, seed)


def loader_of(
    stage: Stage, student: Llava, data: Conversations, visited: Sequence[int], micro: int
) -> DataLoader:
    """Micro-batches of the visited rows, in order, however many processes prepare them."""
    together = partial(
        collate,
        image_token=student.model.config.image_token_id,
        pad_token=student.processor.tokenizer.pad_token_id,
    )
    workers = workers_of(stage, data)
    return DataLoader(data, batch_size=micro, sampler=visited, collate_fn=together, num_workers=workers)


def workers_of(stage: Stage, data: Conversations) -> int:
    """Processes that prepare data: what the stage says; else none for a set that stays in memory."""
    if stage.workers is not None:
        return stage.workers
    if data.fits:
        return 0
    mine = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, mine - 1))


def _taken(loader: Iterator[Batch], count: int) -> list[Batch]:
    """The next micro-batches. Raises UserError when the data is gone."""
    try:
        return list(islice(loader, count))
    except NoStandIn as error:  # from a worker it comes with its traceback in the text
        told = str(error).strip().splitlines()[-1].removeprefix(f"{NoStandIn.__module__}.NoStandIn: ")
        raise UserError(told, hint="check that the pictures are still there") from None


def memory_mib() -> float:
    """Peak memory of the accelerator, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _check_finite(stage: Stage, step: int, figures: dict[str, float]) -> None:
    broken = [
        name for name, value in figures.items() if name.startswith("loss/") and not math.isfinite(value)
    ]
    if broken:
        raise UserError(
            [f"stage {stage.name}, step {step + 1}: {name} is {figures[name]}" for name in broken],
            hint=f"lower the learning rate: stages.{stage.name}.lr={stage.lr / 3:.1e}",
            code=CRASH,
        )
