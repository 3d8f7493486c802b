"""Train the tiny pair in all processes that run this file, and count what they send one another in its second step.

    python -m torch.distributed.run --nproc-per-node 2 tests/support/counted.py FOLDER

The first process writes FOLDER/counted.json: for each way of sharding, the numbers that went through each collective call, the
bytes of a number, the bytes that its connections sent, and the sizes of what is trained.
"""

import contextlib
import gc
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from switchkd_cli.distributed.launch_config import exit_process
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.training import trainer, zero
from switchkd_cli.engine.training.processes import join_processes
from tests.support import together

PASSES = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1}
"""Passes of a ring, by the collective call."""
STRICT = {f"stage3_{name}": 0 for name in ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")}
"""DeepSpeed then shards small weights, too, and keeps none gathered for later."""
BYTES_SENT = 200  # where tcpi_bytes_sent is in Linux's struct tcp_info; tcpi_bytes_retrans, a part of it, comes next
MICRO = 1  # examples
OBJECTIVE = [together.CE, together.ALIGN, together.VSD]
CASES = {
    "ddp": {},
    "zero 1": {"zero": 1},
    "zero 2": {"zero": 2, "precision": "bf16"},
    "zero 3": {"zero": 3, "precision": "bf16"},
}


class Counted(TorchDispatchMode):
    """Count the numbers of weights and gradients that collective calls are given, C++'s among them, as `ring` passes.

    Left out are calls with integers (logs, order of buckets), with float64, or with one number: norms and counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0
        self.widths: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("c10d::")
        if name in PASSES:
            largest = max((t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)), key=Tensor.numel)
            if largest.dtype in (torch.float32, torch.bfloat16) and largest.numel() > 1:
                self.passes += PASSES[name] * largest.numel()
                self.widths.add(largest.element_size())
        return func(*args, **(kwargs or {}))


def sent() -> int:
    """Return the bytes that this process's TCP connections have sent so far, each once.

    What the kernel sent again, because an acknowledgement came late on a busy machine, is left out.
    """
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=int(entry))  # OSError: it is none
            with contextlib.suppress(OSError):  # it isn't TCP
                told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
                written, again = struct.unpack_from("QQ", told, BYTES_SENT)
                total += written - again
            connection.detach()
    return total


def counted(step: Callable, *arguments, **more):
    """Return what a step returns, and the count of what it sent."""
    before = sent()
    with Counted() as count:
        result = step(*arguments, **more)
    return result, {"passes": count.passes, "number": sorted(count.widths), "sent": sent() - before}


def of_trainings(folder: Path) -> dict[str, dict]:
    """Count each case's second step."""
    found, steps, processes = {}, [], join_processes()
    own, config = trainer.Trainer.step, zero.deepspeed_config

    def step(self, *arguments, **more):
        result, count = counted(own, self, *arguments, **more)
        steps.append(count)
        return result

    def strict(*arguments):
        made = config(*arguments)
        return made | {"zero_optimization": made["zero_optimization"] | STRICT}

    trainer.Trainer.step, zero.deepspeed_config = step, strict
    for name, case in CASES.items():
        steps.clear()
        _, _, loop = together.trained(
            folder / name, processes, until=2, **{"micro": MICRO, "objective": OBJECTIVE} | case
        )
        parameters, stage = ModelShape(loop.trainer.paths.student), loop.trainer.stage
        sizes = {"trained": parameters.trained(frozenset(stage.train)), "student": sum(parameters.trainable.values())}
        found[name] = steps[1] | {"sizes": sizes, "accumulation": together.BATCH // (MICRO * processes.count)}
    return found


def of_fsdp2() -> dict:
    """Count a step of torch's FSDP2 on four layers, weights in bf16."""
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    for layer in model:
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    fully_shard(model)
    _, count = counted(lambda: model(torch.randn(2, 64)).sum().backward())
    numbers = 4 * (64 * 64 + 64)
    return count | {"sizes": {"trained": numbers, "student": numbers}, "accumulation": 1}


def main() -> None:
    folder = Path(sys.argv[1])
    processes = join_processes()
    gc.freeze()  # what is imported; garbage is collected after each case
    found = of_trainings(folder)
    found["fsdp2"] = of_fsdp2()
    if processes.first:
        (folder / "counted.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    exit_process(0)  # as a training's processes do
