"""Training with DeepSpeed's ZeRO: what AdamW keeps, gradients and weights are shared out among the processes."""

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn
from torch.optim import AdamW

from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.processes import Processes, backend
from switchkd_cli.recipe.schema import DeepSpeed, Stage

NO_BUILDS = ("deepspeed_shm_comm",)
"""Parts of DeepSpeed that it would compile when it starts, on processors only; gloo does the same without them."""

MOMENTS = ("exp_avg", "exp_avg_sq")


def settings(
    stage: Stage, asked: DeepSpeed, precision: str, micro: int, processes: Processes
) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage. No field is left to a default that changes what is computed."""
    on_host = {"device": "cpu", "pin_memory": processes.device.type == "cuda"}
    zero: dict[str, Any] = {"stage": asked.zero}
    if asked.offload != "none":
        zero["offload_optimizer"] = on_host
    if asked.offload == "parameters":
        zero["offload_param"] = on_host
    told: dict[str, Any] = {
        "train_batch_size": stage.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": stage.batch // (micro * processes.count),
        "gradient_clipping": stage.grad_clip or 0.0,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # the same where it is offloaded: DeepSpeed's own has to be compiled
        "steps_per_print": 2**31 - 1,
    }
    if precision == "bf16" and asked.zero > 1:
        told["data_types"] = {"grad_accum_dtype": "fp32"}  # micro-batches are added up in float32
    return told


class Shards:
    """A twin of `paths` that DeepSpeed takes apart; `paths` itself stays whole, in float32, on the CPU.

    `collect` brings it up to date. What is not trained is never touched: it stays as it was read, whatever precision
    the training has. The teacher is none of DeepSpeed's modules.
    """

    def __init__(
        self,
        paths: Paths,
        groups: Sequence[Mapping[str, Any]],
        processes: Processes,
        *,
        weight_decay: float,
        told: Mapping[str, Any],
    ) -> None:
        _ready(processes)
        self.processes, self.device = processes, processes.device
        if paths.teacher is not None:  # whole in each process, in what the student is computed with
            paths.teacher.to(self.device, torch.bfloat16 if told["bf16"]["enabled"] else torch.float32)
        self.computed = paths.twin()
        self.twins = dict(zip(paths.parameters(), self.computed.parameters(), strict=True))
        self.parameters = [p for group in groups for p in group["params"]]
        own = [{**group, "params": [self.twins[p] for p in group["params"]]} for group in groups]
        self.adamw = AdamW(own, weight_decay=weight_decay, fused=True)
        self.whole = told["zero_optimization"]["stage"] < 3  # each process has all weights
        self.steps = 0.0  # that AdamW has taken
        with _quiet():
            self.engine, *_ = deepspeed.initialize(
                model=self.computed, optimizer=self.adamw, config=dict(told), dist_init_required=False
            )
        _open_state(self.engine.optimizer)

    def own(self, parameter: nn.Parameter) -> nn.Parameter:
        """The tensor that is computed with in a parameter's place."""
        return self.twins[parameter]

    @property
    def heads(self) -> Heads | None:
        """As of replicas; None where each process has a part of the weights."""
        return self.computed.heads() if self.whole else None

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around a forward and backward pass: gradients are added up over the processes."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield
        if not last:
            self.engine.step()  # only counts

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        with _quiet():
            return self.engine(*arguments)

    def beside(self, readings: Mapping[str, Tensor], *arguments: Any) -> Mapping[str, Tensor] | None:
        """Readings whose graph gradients may be asked of before the backward pass.

        DeepSpeed takes every pass back through its own for the one: they are computed again beside it. None where the
        weights are shared out: nothing can be computed without DeepSpeed.
        """
        return self.computed(*arguments) if self.whole else None

    def backward(self, loss: Tensor) -> None:
        with _quiet():
            self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> float:
        """Clips and takes the step, unless the norm of all gradients, which is returned, is no number."""
        with _quiet():
            self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        self.steps += math.isfinite(norm)
        return norm

    @torch.no_grad()
    def collect(self) -> None:
        """Brings the weights in `paths` up to date. Every process has to ask."""
        for parameter in self.parameters:
            parameter.copy_(safe_get_full_fp32_param(self.twins[parameter]))

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What AdamW keeps of a parameter, whole, for the first process; empty before the first step.

        Every process has to ask.
        """
        if not self.steps:
            return {}
        kept = {key: safe_get_full_optimizer_state(self.twins[parameter], key) for key in MOMENTS}
        if not self.processes.first:
            return {}
        return {"step": torch.tensor(self.steps), **{key: value.cpu() for key, value in kept.items()}}

    def set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Gives AdamW what it kept: each process takes its share."""
        if not moments:
            return
        self.steps = float(next(iter(moments.values()))["step"])
        for kept in self.adamw.state.values():
            kept["step"].fill_(self.steps)
        for parameter, kept in moments.items():
            twin = self.twins[parameter]
            for key in MOMENTS:
                safe_set_full_optimizer_state(twin, kept[key].to(self.device), key)

    def close(self) -> None:
        """Lets go of what belongs to the training."""
        self.engine.destroy()


def _open_state(zero: Any) -> None:
    """Lays out what AdamW keeps of each share, as it would itself at its first step.

    DeepSpeed looks for it by parameter after the first step of the first group, when the others' is not there yet.
    """
    shares = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    for share in shares:
        moments = {key: torch.zeros_like(share, requires_grad=False) for key in MOMENTS}
        zero.optimizer.state[share] = {"step": share.new_zeros((), dtype=torch.float32), **moments}
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):  # not of ZeRO 3, which has another way
        zero._lazy_init_hp_params_optimizer_state()


def _ready(processes: Processes) -> None:
    """What DeepSpeed wants to find: a process group, even of one, and this process's number on its machine."""
    for part in NO_BUILDS:
        getattr(deepspeed.ops, "__compatible_ops__", {})[part] = False
    os.environ.setdefault("LOCAL_RANK", str(processes.local))
    if not dist.is_initialized():
        dist.init_process_group(backend(), store=dist.HashStore(), rank=0, world_size=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its warnings about names that torch has given up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message="`torch.distributed")
        yield
