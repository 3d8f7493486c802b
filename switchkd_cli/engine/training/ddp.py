"""Training with torch alone: each process has the whole student, and DDP adds up their gradients."""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.processes import Processes


class Replicas:
    """`paths` itself, on this process's device. bf16 is torch's automatic mixed precision over float32 weights.

    `unreached` says that some trained parameters may get no gradient; DDP would wait for it.
    """

    def __init__(
        self,
        paths: Paths,
        groups: Sequence[Mapping[str, Any]],
        processes: Processes,
        *,
        weight_decay: float,
        grad_clip: float | None,
        precision: str,
        unreached: bool = False,
    ) -> None:
        self.device = processes.device
        self.computed = self.module = paths.to(self.device)
        self.parameters = [p for group in groups for p in group["params"]]
        self.adamw = AdamW([dict(group) for group in groups], weight_decay=weight_decay, fused=True)
        self.limit = grad_clip or math.inf
        self.dtype = torch.bfloat16 if precision == "bf16" else None  # of matrix products
        self.cast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
        if processes.count > 1:
            self.module = DistributedDataParallel(
                paths, gradient_as_bucket_view=True, find_unused_parameters=unreached
            )

    def own(self, parameter: nn.Parameter) -> nn.Parameter:
        """The tensor that is computed with in a parameter's place."""
        return parameter

    @property
    def heads(self) -> Heads | None:
        """What states become logits with; None where nothing but a pass of the whole student can use it."""
        return self.computed.heads(self.dtype)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around a forward and backward pass: gradients are added up over the processes in the step's last one."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
        else:
            yield

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        with self.cast:
            return self.module(*arguments)

    def beside(self, readings: Mapping[str, Tensor], *arguments: Any) -> Mapping[str, Tensor] | None:
        """Readings whose graph gradients may be asked of before the backward pass: the same."""
        return readings

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        """Clips and takes the step, unless the norm of all gradients, which is returned, is no number."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.limit))
        if math.isfinite(norm):
            self.adamw.step()
        self.adamw.zero_grad()
        return norm

    def collect(self) -> None:
        """Brings the weights in `paths` up to date: they are."""

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What AdamW keeps of a parameter; empty before the first step."""
        return dict(self.adamw.state.get(parameter, {}))

    def set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Gives AdamW what it kept."""
        for parameter, kept in moments.items():
            self.adamw.state[parameter] = {k: v.to(self.device, copy=True) for k, v in kept.items()}

    def close(self) -> None:
        """Lets go of what belongs to the training: DDP's hooks on the parameters go when it does."""
        if self.module is not self.computed:
            self.module = self.computed
            gc.collect()
