"""Training with DeepSpeed's ZeRO: what AdamW keeps, gradients and weights are shared out among the processes."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from switchkd_cli.engine.parallel import Processes
from switchkd_cli.engine.paths import Paths
from switchkd_cli.recipe.schema import DeepSpeed, Stage

NO_BUILDS = ("deepspeed_shm_comm",)
"""Parts of DeepSpeed that it would compile when it starts, on processors only; gloo does the same without them."""


def settings(stage: Stage, asked: DeepSpeed, precision: str, micro: int, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration of one stage, all of it decided here."""
    zero: dict[str, Any] = {"stage": asked.zero}
    on_host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if asked.offload != "none":
        zero["offload_optimizer"] = on_host
    if asked.offload == "parameters":
        zero["offload_param"] = on_host
    return {
        "train_batch_size": stage.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": stage.grad_clip or 0.0,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # the same where it is offloaded: DeepSpeed's own has to be compiled
        "steps_per_print": 0x7FFFFFFF,
    }


class Shards:
    """A student of its own for each process's share of the work, and `paths`' as the one that is whole.

    `collect` brings the whole one up to date. Its frozen parts stay what they were read as, whatever precision the
    training has; the teacher is DeepSpeed's at no stage.
    """

    def __init__(
        self, paths: Paths, groups: Iterable[Mapping[str, Any]], told: Mapping[str, Any], processes: Processes
    ) -> None:
        _ready(processes)
        self.whole = paths
        replica = paths.twin()
        twins = dict(zip(paths.parameters(), replica.parameters(), strict=True))
        self.twins = {p: twin for p, twin in twins.items() if p.requires_grad}
        given = [{**group, "params": [twins[p] for p in group["params"]]} for group in groups]
        self.optimizer: Optimizer = AdamW(given)
        self.engine, *_ = deepspeed.initialize(
            model=replica, optimizer=self.optimizer, config=dict(told), dist_init_required=False
        )

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        return self.engine(*arguments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-batch

    def step(self) -> float:
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    @torch.no_grad()
    def collect(self) -> None:
        for parameter, twin in self.twins.items():
            parameter.copy_(safe_get_full_fp32_param(twin))


def _ready(processes: Processes) -> None:
    """What DeepSpeed wants to find: a process group, even of one, and its name for this process's number."""
    for part in NO_BUILDS:
        getattr(deepspeed.ops, "__compatible_ops__", {})[part] = False
    os.environ.setdefault("LOCAL_RANK", str(processes.local))
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
