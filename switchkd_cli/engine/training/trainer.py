"""One optimiser step of a stage: what is trained, how, and the state that the next step depends on."""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.models.low_bits import rounded
from switchkd_cli.engine.models.low_rank import add_adapters
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.teacher_states import TeacherStates
from switchkd_cli.engine.training.chunked import ChunkedObjective, compare_with_dense
from switchkd_cli.engine.training.diagnostics import Counted, Diagnostics, average, gradient_norms_by_term
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.engine.training.optimizer import TorchReplica, make_schedule
from switchkd_cli.engine.training.processes import ALONE, Processes
from switchkd_cli.engine.training.term_state import TermStates
from switchkd_cli.recipe.schema import DeepSpeed, Stage

NO_DEEPSPEED = DeepSpeed()
# The mean of squared gradients: torch's, bitsandbytes' largest of each block, and its own of a small parameter.
SQUARES = ("exp_avg_sq", "absmax2", "state2")


class NonFinite(NamedTuple):
    """A non-finite figure of a step, and the ids of the examples that it comes from."""

    figure: str
    value: float
    rows: tuple[str, ...]


class Trainer:
    """What one stage needs to take optimiser steps.

    A step's loss is divided by the supervised positions of *all* its examples, those of the other processes too, so no
    split into processes and micro-batches changes the gradient.
    """

    def __init__(
        self,
        stage: Stage,
        paths: Paths,
        steps: int,
        precision: str,
        seed: int = 0,
        *,
        processes: Processes = ALONE,
        deepspeed: DeepSpeed = NO_DEEPSPEED,
        launcher: str = "deepspeed",
        states: Path | None = None,
    ) -> None:
        self.stage, self.steps, self.paths = stage, steps, paths
        self.precision, self.processes, self.deepspeed, self.launcher = precision, processes, deepspeed, launcher
        self.seed, self.micro_batch = seed, stage.micro_batch_of(processes.count)
        self.objective = Objective(stage.objective, paths.tokens, stage.means)
        self.states = TermStates(stage, processes.device)
        if stage.lora is not None:
            add_adapters(paths.student, stage.lora, seed)
        paths.requires_grad_(False)
        if "before" in stage.models:
            paths.remember_student()
        paths.recompute(stage.activation_checkpointing)
        self.parts: dict[str, list[nn.Parameter]] = {part: paths.used_parameters(part) for part in stage.train}
        nn.ParameterList(p for part in self.parts.values() for p in part).requires_grad_(True)
        self._until_closed = ExitStack()
        self._until_closed.enter_context(rounded(paths.student, stage.bits))
        frozen = "vision" not in self.parts and stage.bits is None
        paths.one_tower = frozen and paths.teacher is not None and paths.student.same_vision(paths.teacher)
        by_row = stage.teacher_states != "batched" and stage.needs_teacher
        paths.states = TeacherStates(states if stage.teacher_states == "cached" else None) if by_row else None
        rates = {part: stage.lr * stage.lr_scale.get(part, 1.0) for part in stage.train}
        self.groups: list[dict[str, Any]] = [{"params": self.parts[part], "lr": lr} for part, lr in rates.items()]
        if adapters := paths.adapt(self.objective.outputs, seed):
            self.groups.append({"params": adapters, "lr": stage.lr})
        trained = {id(p) for group in self.groups for p in group["params"]}
        self.trained = {name: p for name, p in paths.named_parameters() if id(p) in trained}
        self.compared: set[str] = set()  # terms that had a position or an image in the last step
        self._begin()

    def _begin(self) -> None:
        """Make an optimiser that has taken no step, for the weights as they are."""
        paths, stage, groups = self.paths.train(), self.stage, self.groups
        if self.deepspeed.zero:
            from switchkd_cli.engine.training.zero import ZeroReplica, deepspeed_config

            config = deepspeed_config(stage, self.deepspeed, self.precision, self.processes)
            self.replica: TorchReplica | ZeroReplica = ZeroReplica(paths, groups, self.processes, stage, config)
        elif self.launcher == "fsdp" and self.processes.count > 1:
            from switchkd_cli.engine.training.fsdp import FsdpReplica

            self.replica = FsdpReplica(paths, groups, self.processes, stage, self.precision)
        else:
            unused = "student" not in self.objective.outputs
            self.replica = TorchReplica(paths, groups, self.processes, stage, self.precision, unused=unused)
        self.loss = ChunkedObjective(self.objective, dense=self.replica.heads is None)
        self.schedule = make_schedule(self.replica.adamw, stage, self.steps)

    def step(
        self, group: Sequence[Batch], *, diagnosed: bool, checked: bool = False
    ) -> tuple[dict[str, float], list[NonFinite]]:
        """Take one optimiser step over this process's micro-batches and, at the same time, those of the other processes.

        Returns its figures, over all processes, and the non-finite ones among them. If there are any, no weight was
        changed, only the schedule moved on. `checked`: the first micro-batch's chunked objective is compared with the
        dense one; raises UserError (code CRASH) where they differ.
        """
        mixture = f"{self.seed}/{self.stage.name}/{self.schedule.last_epoch}"
        group = [replace(batch.to(self.replica.device), mixture=mixture) for batch in group]
        progress = self.progress
        counts = self.objective.counts(group, self.processes.sum)
        weighted = [term for term in self.stage.objective if term.weight]
        self.compared = {term.name for term in weighted if counts[self.objective.counted(term)]}
        factor = self.schedule.lr_lambdas[0](self.schedule.last_epoch)
        rates, weights, states = self._learning_rates(factor), self.states.weights(progress), self.states.adding()
        losses: dict[str, float] = {}
        diagnostics: dict[str, Counted] = {}
        non_finite: list[NonFinite] = []
        for batch in group:
            last = batch is group[-1]
            with self.replica.micro_batch(last=last):
                keep = self.objective.keep(batch)
                outputs = self.replica(batch, self.loss.outputs, keep)
                heads, kept = self.replica.heads, self.states.of_losses
                inputs = LossInputs(outputs, heads, batch, keep, counts, progress, weights, kept)
                if checked and batch is group[0] and inputs.heads is not None:
                    apart = compare_with_dense(self.objective, inputs)
                    diagnostics = {name: (value, int(keep.sum())) for name, value in apart.items()}
                of_logits = Diagnostics(self.stage.objective) if diagnosed and last else None
                looks = (of_logits.add, of_logits.add_values) if of_logits else ()
                loss, parts = self.loss(inputs._replace(states=states), *looks)
                values = {name: part.item() for name, part in parts.items()}
                non_finite += (broken := self._non_finite(values, inputs))
                for name, value in values.items():
                    losses[f"loss/{name}"] = losses.get(f"loss/{name}", 0.0) + value
                if of_logits and not non_finite:
                    norms = {name: (norm, int(keep.sum())) for name, norm in self._gradient_norms(inputs).items()}
                    diagnostics |= norms | of_logits.counted()
                # processes' gradients are averaged; the counts are those of all of them already
                loss = loss * self.processes.count
                self.replica.backward(loss * math.nan if broken else loss)  # no step is taken on NaN
        sums = {name: state.sums for name, state in states.items()}
        of_processes = self.processes.gather((losses, non_finite, diagnostics, sums))
        of_losses, of_broken, of_diagnostics, of_sums = zip(*of_processes, strict=True)
        non_finite = [figure for each in of_broken for figure in each]
        norm = self.replica.step()
        if not (non_finite or math.isfinite(norm)):
            ids = self.processes.gather([i for batch in group for i in batch.ids])
            non_finite = [NonFinite("grad_norm", norm, tuple(i for each in ids for i in each))]
        with warnings.catch_warnings():  # a first step that changes no weight would cause one
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()
        # every process's part was divided by the positions of all
        figures = {**rates, **{name: sum(each[name] for each in of_losses) for name in losses}, "grad_norm": norm}
        values = {term.name: figures[f"loss/{term.name}"] for term in self.stage.objective}
        figures["loss"] = self.states.total(values, weights)
        figures |= self.objective.aligned(counts) | {f"weight/{name}": of for name, of in weights.items()}
        if not non_finite:
            self.states.update(values, self.compared, of_sums, progress, factor)
        return figures | ({} if non_finite else average(of_diagnostics)), non_finite

    @property
    def progress(self) -> float:
        """The share of the stage's steps that were taken."""
        return self.schedule.last_epoch / self.steps

    def _learning_rates(self, factor: float) -> dict[str, float]:
        """Return the stage's learning rate, `lr`, at this `factor` of its schedule, and `lr/<part>` of parts with a scale of their own."""
        scaled = [(part, scale) for part, scale in self.stage.lr_scale.items() if part in self.parts]
        of_parts = {f"lr/{part}": self.stage.lr * scale * factor for part, scale in scaled}
        return {"lr": self.stage.lr * factor, **of_parts}

    def got_gradient(self, part: str) -> bool:
        """Whether a gradient other than 0 ever reached the part, by AdamW's moments. Every process must call this."""
        for parameter in self.parts[part]:
            moments = self.replica.moments(parameter)
            squares = next((moments[name] for name in SQUARES if moments.get(name) is not None), None)
            if self.processes.gather(squares is not None and bool(squares.any()))[0]:
                return True
        return False

    def _non_finite(self, terms: Mapping[str, float], inputs: LossInputs) -> list[NonFinite]:
        """Return a micro-batch's non-finite terms, with the examples that cause them: all, if only the sum is."""
        broken = {name: value for name, value in terms.items() if not math.isfinite(value)}
        rows = self.loss.non_finite_rows(list(broken), inputs) if broken else {}
        causes = {name: tuple(i for i in inputs.batch.ids if i in rows[name]) for name in broken}
        return [NonFinite(f"loss/{name}", value, causes[name] or inputs.batch.ids) for name, value in broken.items()]

    def _gradient_norms(self, inputs: LossInputs) -> dict[str, float]:
        """Return the norm of each term's gradient in a micro-batch, and the share of it that reaches V_S past an adapter.

        Nothing for a single term without an adapter, nor through a sharded teacher, as processes may have unlike terms.
        """
        teacher, weighted = self.paths.teacher, sum(bool(term.weight) for term in self.stage.objective)
        single = weighted < 2 and not {"vision", "adapter"} <= self.parts.keys()
        if single or (teacher is not None and teacher.sharded):
            return {}
        outputs = self.replica.outputs_to_probe(inputs.outputs, inputs.batch, self.loss.outputs, inputs.keep)
        if outputs is None:
            return {}
        probed = {part: [self.replica.twins[p] for p in own] for part, own in self.parts.items()}
        return gradient_norms_by_term(self.loss.weighted_terms(inputs._replace(outputs=outputs)), probed)

    def state_dict(self) -> dict[str, Any]:
        """Return the trained weights by name, and AdamW's and the schedule's state. Every process must call this.

        All of it is complete, however it is sharded: any number of processes and any ZeRO stage can resume from it.
        Frozen parts and the teacher are not in it: they follow from the recipe and the stages before.
        """
        self.replica.collect()
        moments = {name: self.replica.moments(p) for name, p in self.trained.items()}
        groups = self.replica.adamw.param_groups
        return {
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "moments": {name: of_one for name, of_one in moments.items() if of_one},
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in groups],
            "schedule": self.schedule.state_dict(),
            "terms": self.states.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken. Raises ValueError if other parameters were trained."""
        if unlike := sorted(state["weights"].keys() ^ self.trained.keys()):
            raise ValueError(f"other parameters were trained: {', '.join(unlike[:3])}")
        self.replica.close()
        self.paths.load_state_dict(state["weights"], strict=False)
        self._begin()
        self.replica.set_moments({self.trained[name]: m for name, m in state["moments"].items()})
        for group, saved in zip(self.replica.adamw.param_groups, state["groups"], strict=True):
            group.update(saved)
        self.schedule.load_state_dict(state["schedule"])
        if "terms" in state:  # older checkpoints lack it
            self.states.load_state_dict(state["terms"])

    def close(self) -> None:
        """Leave the trained weights in `paths`, adapters not merged yet."""
        self.replica.collect()
        self.replica.close()
        self.paths.frozen.pop("before", None)
        self._until_closed.close()
        if self.paths.states is not None:
            self.paths.states.close()
            self.paths.states = None
