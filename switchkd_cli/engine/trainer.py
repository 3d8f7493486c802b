"""The optimiser's side of a stage: what is trained, one step, and the state that the next one depends on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW
from transformers import get_scheduler

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.diagnostics import diagnose, pulls
from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.engine.objective import Objective
from switchkd_cli.engine.paths import PATHS, Paths
from switchkd_cli.recipe.schema import Stage

SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}  # ours -> transformers' names


@dataclass(frozen=True)
class NotFinite:
    """A figure of a step that is no number, and the ids of the rows that it comes from."""

    figure: str
    value: float
    rows: tuple[str, ...]


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
        trained = {id(p) for group in groups for p in group["params"]}
        self.trained = {name: p for name, p in paths.named_parameters() if id(p) in trained}
        self.adamw = AdamW(groups, weight_decay=stage.weight_decay)
        self.schedule = get_scheduler(
            SCHEDULES[stage.schedule], self.adamw, round(stage.warmup * steps), steps
        )
        self.paths, self.optimizer = self.accelerator.prepare(paths.train(), self.adamw)

    def step(self, group: Sequence[Batch], *, diagnosed: bool) -> tuple[dict[str, float], list[NotFinite]]:
        """One optimiser step over the group's micro-batches; returns its figures, and those that are no number.

        Where there are any, no weight was changed: only the schedule went on.
        """
        group = [batch.to(self.accelerator.device) for batch in group]
        tally = self.objective.tally(group, progress=self.schedule.last_epoch / self.steps)
        figures = {"lr": self.schedule.get_last_lr()[0]}
        broken: list[NotFinite] = []
        for batch in group:
            with self.accelerator.accumulate(self.paths):
                keep = self.objective.keep(batch)
                readings = self.paths(batch, self.objective.readings, keep)
                parts = self.objective(readings, batch, keep, tally)
                values = {name: part.item() for name, part in parts.items()}
                if lost := [name for name, value in values.items() if not math.isfinite(value)]:
                    rows = self.objective.not_finite(lost, readings, batch, keep, tally)
                    broken += [NotFinite(f"loss/{name}", values[name], rows[name]) for name in lost]
                if diagnosed and batch is group[-1] and not broken:
                    figures |= pulls(parts, self.stage.objective, self.parts)
                # backward() averages over the micro-batches; the tally has divided by all of them already
                self.accelerator.backward(self.objective.total(parts) * len(group))
                for name, value in values.items():
                    figures[f"loss/{name}"] = figures.get(f"loss/{name}", 0.0) + value
                if self.accelerator.sync_gradients:
                    figures["grad_norm"] = norm = self._clipped()
                    if not (broken or math.isfinite(norm)):
                        broken.append(NotFinite("grad_norm", norm, tuple(i for b in group for i in b.ids)))
                if not broken:
                    self.optimizer.step()
                self.optimizer.zero_grad()
        self.schedule.step()
        figures["loss"] = sum(term.weight * figures[f"loss/{term.name}"] for term in self.stage.objective)
        if diagnosed and not broken:
            logits = {path: readings[path] for path in PATHS if path in readings}
            figures |= diagnose(logits, batch.targets[keep], self.stage.objective)
        return figures, broken

    def _clipped(self) -> float:
        """The norm of all gradients, which are clipped to the stage's limit."""
        limit = self.stage.grad_clip or math.inf
        return float(self.accelerator.clip_grad_norm_(list(self.trained.values()), limit))

    def state_dict(self) -> dict[str, Any]:
        """What is trained, by the names of its parameters, and AdamW's and the schedule's state.

        Frozen parts and the teacher are no part of it: they follow from the recipe and the stages before.
        """
        inner = self.adamw.state
        return {
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "moments": {name: dict(inner[p]) for name, p in self.trained.items() if p in inner},
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in self.adamw.param_groups],
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stands where `state_dict` was taken. Raises ValueError where other parameters were trained."""
        if unlike := sorted(state["weights"].keys() ^ self.trained.keys()):
            raise ValueError(f"other parameters were trained: {', '.join(unlike[:3])}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        indexes = {id(p): i for i, p in enumerate(p for g in self.adamw.param_groups for p in g["params"])}
        whole = self.adamw.state_dict()
        groups = [
            {**saved, "params": group["params"]}
            for saved, group in zip(state["groups"], whole["param_groups"], strict=True)
        ]
        moments = {indexes[id(self.trained[name])]: _copied(kept) for name, kept in state["moments"].items()}
        self.adamw.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Ends the trackers."""
        self.accelerator.end_training()


def unfreeze(student: Llava, part: str) -> list[torch.nn.Parameter]:
    """Lets the part be trained and returns the parameters that a forward pass of it reaches."""
    parameters = list(student.reached(part).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _copied(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own: what a file was read into may lie unaligned, and is let go."""
    return {name: tensor.clone() for name, tensor in moments.items()}
