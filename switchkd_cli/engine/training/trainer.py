"""The optimiser's side of a stage: what is trained, one step, and the state that the next one depends on."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import get_scheduler

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.teacher_states import States
from switchkd_cli.engine.training.chunked import AtOnce, Chunks, Given
from switchkd_cli.engine.training.data_loader import micro_batch
from switchkd_cli.engine.training.ddp import Replicas
from switchkd_cli.engine.training.diagnostics import Diagnosis, pulls
from switchkd_cli.engine.training.objective import Objective
from switchkd_cli.engine.training.processes import ALONE, Processes
from switchkd_cli.engine.training.reduce import NotFinite, Share, averaged, summed
from switchkd_cli.engine.training.verify_chunks import check
from switchkd_cli.recipe.schema import DeepSpeed, Stage

TORCH_ALONE = DeepSpeed()
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}  # ours -> transformers' names


class Trainer:
    """What one stage needs to take optimiser steps.

    A step's loss is divided by the supervised positions of *all* its rows, those of the other processes too, so no
    split into processes and micro-batches changes the gradient.
    """

    def __init__(
        self,
        stage: Stage,
        paths: Paths,
        steps: int,
        precision: str,
        trackers: Path,
        seed: int = 0,
        *,
        processes: Processes = ALONE,
        deepspeed: DeepSpeed = TORCH_ALONE,
        states: Path | None = None,
    ) -> None:
        self.stage, self.steps, self.paths = stage, steps, paths
        self.precision, self.processes, self.deepspeed = precision, processes, deepspeed
        self.micro = micro_batch(stage, processes.count)
        self.objective = Objective(stage.objective)
        paths.student.requires_grad_(False)
        paths.recompute(stage.activation_checkpointing)
        self.parts = {part: unfreeze(paths.student, part) for part in stage.train}
        paths.one_tower = (
            "vision" not in self.parts and paths.teacher is not None and paths.student.sees_as(paths.teacher)
        )
        paths.states = _states(stage, states)
        self.groups = [
            {"params": given, "lr": stage.lr * stage.lr_scale.get(part, 1.0)}
            for part, given in self.parts.items()
        ]
        if adapters := paths.adapt(self.objective.readings, seed):
            self.groups.append({"params": adapters, "lr": stage.lr})
        trained = {id(p) for group in self.groups for p in group["params"]}
        self.trained = {name: p for name, p in paths.named_parameters() if id(p) in trained}
        self.compared: set[str] = set()  # terms that had a position or a picture in the last step
        self.tracker = SummaryWriter(str(trackers / stage.name)) if processes.first else None
        self._begin()

    def _begin(self) -> None:
        """Takes the weights as they are, with an optimiser that has taken no step."""
        paths, stage, groups = self.paths.train(), self.stage, self.groups
        if self.deepspeed.zero:
            from switchkd_cli.engine.training.zero import Shards, settings

            told = settings(stage, self.deepspeed, self.precision, self.micro, self.processes)
            self.replica = Shards(paths, groups, self.processes, weight_decay=stage.weight_decay, told=told)
        else:
            self.replica = Replicas(
                paths,
                groups,
                self.processes,
                weight_decay=stage.weight_decay,
                grad_clip=stage.grad_clip,
                precision=self.precision,
                unreached="student" not in self.objective.readings,
            )
        self.computed = AtOnce(self.objective) if self.replica.heads is None else Chunks(self.objective)
        warmup = round(stage.warmup * self.steps)
        self.schedule = get_scheduler(SCHEDULES[stage.schedule], self.replica.adamw, warmup, self.steps)

    def step(
        self, group: Sequence[Batch], *, diagnosed: bool, checked: bool = False
    ) -> tuple[dict[str, float], list[NotFinite]]:
        """One optimiser step over the micro-batches of this process and, at the same time, those of the others.

        Returns its figures, over all processes, and those that are no number. Where there are any, no weight was
        changed: only the schedule went on. `checked`: the first micro-batch's chunks are compared with all logits at
        once; raises UserError (code CRASH) where they differ.
        """
        group = [batch.to(self.replica.device) for batch in group]
        tally = self.objective.tally(group, self.schedule.last_epoch / self.steps, self.processes.sum)
        weighed = [term for term in self.stage.objective if term.weight]
        self.compared = {term.name for term in weighed if tally.counts[self.objective.counted(term)]}
        lr = self.schedule.get_last_lr()[0]
        values: dict[str, float] = {}
        seen: dict[str, float] = {}
        broken: list[NotFinite] = []
        for batch in group:
            last = batch is group[-1]
            with self.replica.micro_batch(last=last):
                keep = self.objective.keep(batch)
                readings = self.replica(batch, self.computed.readings, keep)
                given = Given(readings, self.replica.heads, batch, keep, tally)
                if checked and batch is group[0] and given.heads is not None:
                    seen = check(self.objective, given)
                diagnosis = Diagnosis(self.stage.objective) if diagnosed and last else None
                loss, parts = self.computed(given, diagnosis and diagnosis.look)
                terms = {name: part.item() for name, part in parts.items()}
                broken += (found := self._not_finite(terms, given))
                for name, value in terms.items():
                    values[f"loss/{name}"] = values.get(f"loss/{name}", 0.0) + value
                if diagnosis and not broken:
                    seen |= self._pulls(given) | diagnosis.figures()
                # processes' gradients are averaged; the tally has divided by all of them already
                loss = loss * self.processes.count
                self.replica.backward(loss * math.nan if found else loss)  # no step is taken on NaN
        shares = self.processes.every(Share(values, broken, seen, int(keep.sum())))
        broken = [one for share in shares for one in share.broken]
        norm = self.replica.step()
        if not (broken or math.isfinite(norm)):
            ids = self.processes.every([i for batch in group for i in batch.ids])
            broken = [NotFinite("grad_norm", norm, tuple(i for each in ids for i in each))]
        self._next_rate()
        figures = {"lr": lr, **summed(shares), "grad_norm": norm}
        figures["loss"] = sum(term.weight * figures[f"loss/{term.name}"] for term in self.stage.objective)
        return figures | ({} if broken else averaged(shares)), broken

    def moved(self, part: str) -> bool:
        """Whether a gradient other than 0 ever reached the part, by what AdamW keeps. Every process has to ask."""
        for parameter in self.parts[part]:
            squares = self.replica.moments(parameter).get("exp_avg_sq")
            if self.processes.every(squares is not None and bool(squares.any()))[0]:
                return True
        return False

    def _next_rate(self) -> None:
        """The schedule goes on, whether weights were changed or not."""
        with warnings.catch_warnings():
            # said of a first step that was not taken
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()

    def _not_finite(self, terms: Mapping[str, float], given: Given) -> list[NotFinite]:
        """The terms of a micro-batch that are no number, with the rows that they come from; all, if it is their sum."""
        lost = {name: value for name, value in terms.items() if not math.isfinite(value)}
        rows = self.computed.not_finite(list(lost), given) if lost else {}
        ids = given.batch.ids
        return [
            NotFinite(f"loss/{name}", value, tuple(i for i in ids if i in rows[name]) or ids)
            for name, value in lost.items()
        ]

    def _pulls(self, given: Given) -> dict[str, float]:
        """What each term's gradient comes to in a micro-batch; nothing where there is one term."""
        if sum(term.weight > 0 for term in self.stage.objective) < 2:
            return {}
        beside = self.replica.beside(given.readings, given.batch, self.computed.readings, given.keep)
        if beside is None:
            return {}
        probed = {part: [self.replica.own(p) for p in own] for part, own in self.parts.items()}
        return pulls(self.computed.each(given._replace(readings=beside)), probed)

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Gives the figures to tensorboard; one process does."""
        if self.tracker is not None:
            for name, value in figures.items():
                self.tracker.add_scalar(name, value, global_step=step)
            self.tracker.flush()

    def state_dict(self) -> dict[str, Any]:
        """What is trained, by the names of its parameters, and AdamW's and the schedule's state. Every process has to ask.

        All of it is whole, however it is shared out: any number of processes and any ZeRO stage goes on from it.
        Frozen parts and the teacher are no part of it: they follow from the recipe and the stages before.
        """
        self.replica.collect()
        kept = {name: self.replica.moments(p) for name, p in self.trained.items()}
        groups = self.replica.adamw.param_groups
        return {
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "moments": {name: moments for name, moments in kept.items() if moments},
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in groups],
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stands where `state_dict` was taken. Raises ValueError where other parameters were trained."""
        if unlike := sorted(state["weights"].keys() ^ self.trained.keys()):
            raise ValueError(f"other parameters were trained: {', '.join(unlike[:3])}")
        self.replica.close()
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self._begin()
        self.replica.set_moments({self.trained[name]: kept for name, kept in state["moments"].items()})
        for group, saved in zip(self.replica.adamw.param_groups, state["groups"], strict=True):
            group.update(saved)
        self.schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Leaves the trained weights in `paths`, and ends the tracker."""
        self.replica.collect()
        self.replica.close()
        if self.paths.states is not None:
            self.paths.states.close()
            self.paths.states = None
        if self.tracker is not None:
            self.tracker.close()


def _states(stage: Stage, file: Path | None) -> States | None:
    """How the teacher's last states are had; without a file none are kept."""
    if stage.teacher_states == "batched" or not stage.needs_teacher:
        return None
    return States(file if stage.teacher_states == "cached" else None)


def unfreeze(student: Llava, part: str) -> list[torch.nn.Parameter]:
    """Lets the part be trained and returns the parameters that a forward pass of it reaches."""
    parameters = list(student.reached(part).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters
