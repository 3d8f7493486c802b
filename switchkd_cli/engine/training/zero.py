"""Training with DeepSpeed's ZeRO: AdamW's state, gradients and weights are sharded over the processes."""

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_optimizer_state
from torch import Tensor, nn

from switchkd_cli.engine.batch import PerImage
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.optimizer import Groups, Replica
from switchkd_cli.engine.training.processes import Processes, backend
from switchkd_cli.recipe.schema import DeepSpeed, Stage

MOMENTS = ("exp_avg", "exp_avg_sq")


def deepspeed_config(stage: Stage, deepspeed: DeepSpeed, precision: str, processes: Processes) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a stage. No field that changes the numbers is left to its default."""
    micro_batch = stage.micro_batch_of(processes.count)
    on_host = {"device": "cpu", "pin_memory": processes.device.type == "cuda"}
    zero: dict[str, Any] = {"stage": deepspeed.zero}
    if deepspeed.offload != "none":
        zero["offload_optimizer"] = on_host
    if deepspeed.offload == "parameters":
        zero["offload_param"] = on_host
    config: dict[str, Any] = {
        "train_batch_size": stage.batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": stage.batch // (micro_batch * processes.count),
        "gradient_clipping": stage.grad_clip or 0.0,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # the same where it is offloaded: DeepSpeed's own has to be compiled
        "steps_per_print": 2**31 - 1,
    }
    if precision == "bf16" and deepspeed.zero > 1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # micro-batches are added up in float32
    return config


class ZeroReplica(Replica):
    """DeepSpeed shards a copy; the `whole` paths stay on the CPU, in float32.

    Frozen weights in them never change: they stay as they were read, whatever the training's precision. The teacher is
    not one of DeepSpeed's modules.
    """

    def __init__(
        self, whole: Paths, groups: Groups, processes: Processes, stage: Stage, config: Mapping[str, Any]
    ) -> None:
        _prepare_deepspeed(processes)
        for model in whole.frozen.values():  # complete in each process, in the dtype of the student's products
            model.to(processes.device, torch.bfloat16 if config["bf16"]["enabled"] else torch.float32)
        super().__init__(whole, whole.twin(), groups, processes, stage)
        self.processes = processes
        self.complete = config["zero_optimization"]["stage"] < 3  # each process has all weights
        self.steps = 0.0  # taken by AdamW
        given = {"model": self.paths, "optimizer": self.adamw, "config": dict(config)}
        self.engine, *_ = deepspeed.initialize(**given, dist_init_required=False)
        _create_moments(self.engine.optimizer)

    @property
    def heads(self) -> Heads | None:
        return super().heads if self.complete else None

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around a forward and backward pass: processes exchange gradients."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield
        if not last:
            self.engine.step()  # only counts micro-batches

    def __call__(self, *arguments: Any) -> dict[str, PerImage]:
        return self.engine(*arguments)

    def outputs_to_probe(self, outputs: Mapping[str, PerImage], *arguments: Any) -> Mapping[str, PerImage] | None:
        """Return outputs whose graph may give gradients before the backward pass.

        DeepSpeed takes every gradient for the one backward pass of its own, so they are computed again without it. None
        if the weights are sharded: nothing can be computed without DeepSpeed.
        """
        return self.paths(*arguments) if self.complete else None

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> float:
        """Clip and take the step, unless the norm of all gradients, which is returned, is non-finite."""
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        self.steps += math.isfinite(norm)
        return norm

    def _gathered(self, value: Tensor) -> Tensor:
        return safe_get_full_fp32_param(value)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return AdamW's complete state of a parameter, in the first process; empty before the first step.

        Every process must call this.
        """
        if not self.steps:
            return {}
        moments = {key: safe_get_full_optimizer_state(self.twins[parameter], key) for key in MOMENTS}
        if not self.processes.first:
            return {}
        return {"step": torch.tensor(self.steps), **{key: value.cpu() for key, value in moments.items()}}

    def set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Restore AdamW's state: each process takes its shard."""
        if not moments:
            return
        self.steps = float(next(iter(moments.values()))["step"])
        for state in self.adamw.state.values():
            state["step"].fill_(self.steps)
        for parameter, of_parameter in moments.items():
            twin = self.twins[parameter]
            for key in MOMENTS:
                safe_set_full_optimizer_state(twin, of_parameter[key].to(self.device), key)

    def close(self) -> None:
        """Release what belongs to the training."""
        self.engine.destroy()


def _create_moments(zero: Any) -> None:
    """Create AdamW's state of each shard, as AdamW itself would at its first step.

    DeepSpeed looks it up by parameter after the first step of the first group, before the other groups have theirs.
    """
    shards = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    for shard in shards:
        moments = {key: torch.zeros_like(shard, requires_grad=False) for key in MOMENTS}
        zero.optimizer.state[shard] = {"step": shard.new_zeros((), dtype=torch.float32), **moments}
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 3 does it in another way
        zero._lazy_init_hp_params_optimizer_state()


def _prepare_deepspeed(processes: Processes) -> None:
    """Set up what DeepSpeed needs: a process group, even of one, and this process's number on its machine.

    Its warnings about names that torch has deprecated are hidden.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, message="`torch.distributed")
    # it would be compiled at the start on CPUs; gloo does the same without it
    getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", str(processes.local))
    if not dist.is_initialized():
        dist.init_process_group(backend(), store=dist.HashStore(), rank=0, world_size=1)
