"""A stage's optimiser, the schedule of its learning rate, and training with torch alone.

With torch alone each process has the whole student, and DDP averages their gradients; zero.py has the other way.
"""

import gc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from switchkd_cli import registry
from switchkd_cli.engine.batch import PerImage
from switchkd_cli.engine.hub import forbid_kernels
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.processes import Processes
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage

Groups = Sequence[Mapping[str, Any]]
"""AdamW's groups of parameters."""


class Replica:
    """`whole` as a training computes with it: `paths`, itself, or a copy that is sharded and that `collect` copies back.

    `parameters` are the trained ones of `whole`, `twins` what is computed with in each one's place.
    """

    dtype: torch.dtype | None = None  # of matrix products, where they are cast

    def __init__(self, whole: Paths, paths: Paths, groups: Groups, processes: Processes, stage: Stage) -> None:
        self.whole, self.paths, self.device = whole, paths, processes.device
        self.twins = dict(zip(whole.parameters(), paths.parameters(), strict=True))
        self.parameters = [p for group in groups for p in group["params"]]
        own = [{**group, "params": [self.twins[p] for p in group["params"]]} for group in groups]
        self.adamw = make_optimizer(own, stage)

    @property
    def heads(self) -> Heads | None:
        """What turns hidden states into logits; None if only a forward pass of the whole student can."""
        return self.paths.heads(self.dtype)

    @contextmanager
    def complete_student(self) -> Iterator[VisionLanguageModel]:
        """Around a block that generates with the student as it is now. Every process must call this.

        A student of which each process has a part is made complete, in float32, so that no process waits inside the block for
        another one's longer answers.
        """
        if self.heads is not None:
            yield self.paths.student
            return
        self.collect()
        try:
            yield self.whole.student.to(self.device)
        finally:
            self.whole.student.cpu()

    @torch.no_grad()
    def collect(self) -> None:
        """Bring the weights in `whole` up to date. Every process must call this."""
        for parameter in self.parameters if self.paths is not self.whole else ():
            parameter.copy_(self._gathered(self.twins[parameter]))

    def _gathered(self, value: Tensor) -> Tensor:
        """Return the whole of what each process may have a part of."""
        return value


class TorchReplica(Replica):
    """A replica on this process's device. bf16 is torch's automatic mixed precision over float32 weights.

    `unused`: some trained parameters may get no gradient, for which DDP would wait. `sharded`: a copy that needs no DDP.
    """

    def __init__(
        self,
        whole: Paths,
        groups: Groups,
        processes: Processes,
        stage: Stage,
        precision: str,
        *,
        unused: bool = False,
        sharded: Paths | None = None,
    ) -> None:
        super().__init__(whole, sharded or whole.to(processes.device), groups, processes, stage)
        self.module: Any = self.paths
        self.max_norm = stage.grad_clip or math.inf
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
        if processes.count > 1 and sharded is None:
            how: dict[str, Any] = {"gradient_as_bucket_view": True, "find_unused_parameters": unused}
            self.module = DistributedDataParallel(whole, **how)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: processes exchange gradients in the step's last one."""
        return nullcontext() if last or self.module is self.paths else self.module.no_sync()

    def __call__(self, *arguments: Any) -> dict[str, PerImage]:
        with self.autocast:
            return self.module(*arguments)

    def outputs_to_probe(self, outputs: Mapping[str, PerImage], *arguments: Any) -> Mapping[str, PerImage] | None:
        """Return outputs whose graph may give gradients before the backward pass: the outputs themselves.

        None if the weights are sharded: a backward pass of another kind would leave its gradients with the step's.
        """
        return outputs if self.heads is not None else None

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        """Clip and take the step, unless the norm of all gradients, which is returned, is non-finite."""
        own = [self.twins[p] for p in self.parameters]
        norm = float(nn.utils.clip_grad_norm_(own, self.max_norm))
        if math.isfinite(norm):
            self.adamw.step()
        self.adamw.zero_grad()
        return norm

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return AdamW's complete state of a parameter; empty before the first step. Every process must call this."""
        state = self.adamw.state.get(self.twins[parameter], {})
        # bitsandbytes' parameters share their tables of values, which no file of tensors may hold twice
        return {k: v.clone() if k.startswith("qmap") else self._gathered(v) for k, v in state.items()}

    def set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Restore AdamW's state, as far as this process has it."""
        for parameter, state in moments.items():
            own = {k: v.to(self.device, copy=True) if torch.is_tensor(v) else v for k, v in state.items()}
            self.adamw.state[self.twins[parameter]] = own

    def close(self) -> None:
        """Release what belongs to the training: DDP's hooks on the parameters."""
        if self.module is not self.paths:
            self.module = self.paths
            gc.collect()


def make_optimizer(groups: list[dict[str, Any]], stage: Stage) -> Optimizer:
    """Return the stage's AdamW: torch's fused kernel, or bitsandbytes' with moments of 8 bits (adamw_8bit)."""
    # every group has a rate of its own; schedules read the stage's
    given = {name: getattr(stage, name) for name in ("lr", "weight_decay", "betas", "eps")}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if stage.optimizer == "adamw_8bit":
        forbid_kernels()
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **settings)
    return AdamW(groups, **settings, fused=True)


def make_schedule(optimizer: Optimizer, stage: Stage, steps: int) -> LambdaLR:
    """Return the stage's schedule over `steps`. Raises UserError for parameters that don't fit one another."""
    given = {"num_warmup_steps": round(stage.warmup * steps), "num_training_steps": steps}
    taken = registry.signature("schedule", stage.schedule).positional
    try:
        # where it is installed, transformers imports peft with its schedules, and that torch's compiler: a second
        with patch("transformers.utils.is_peft_available", lambda: False):
            import_module("transformers.optimization")
        make = registry.resolve("schedule", stage.schedule)
        schedule = make(optimizer, **{k: v for k, v in given.items() if k in taken}, **stage.schedule_parameters)
        factors = [schedule.lr_lambdas[0](step) for step in {0, *given.values(), steps // 2}]
        if not all(math.isfinite(factor) and factor >= 0 for factor in factors):
            raise ValueError(f"its learning rates would be multiples of {factors}")
    except (TypeError, ValueError, ArithmeticError) as error:
        problem = f"stages.{stage.name}.schedule_parameters: {stage.schedule}: {error}"
        raise UserError(problem, "docs/recipes.md lists the schedules and their parameters") from error
    return schedule


def check_schedules(stages: Iterable[Stage]) -> None:
    """Raise UserError for a schedule that can't be made, before the first stage is trained."""
    for stage in stages:
        make_schedule(AdamW([torch.zeros(1)], lr=stage.lr), stage, stage.steps or 1000)
